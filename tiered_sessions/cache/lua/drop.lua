-- ARGV: token or '', tag to keep (4) or none. Deletes the entry unless its tag is that; other masks stay.
local was = redis.call('HMGET', key, 'p', 'i', 'r', 'g', 'ut')
local packed, live = masks(was[1], ARGV[1])
if #ARGV > 1 and tag_is(was, 2, 2) then
  control(packed)
else
  forget(live)
end
return 'OK'
