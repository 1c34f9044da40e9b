-- ARGV: token or '', tag to keep (4) or none. Deletes the entry unless its tag is that; other masks stay.
local packed, live = masks(ARGV[1])
if #ARGV > 1 and tag_is(2) then
  set_masks(packed)
  redis.call('HDEL', key, 'l', 'lt', 'ld')
else
  forget(live)
end
return 'OK'
