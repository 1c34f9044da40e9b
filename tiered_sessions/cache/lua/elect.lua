-- ARGV: owner, life. Makes the owner the one drainer, or prolongs its term.
local owner = redis.call('GET', key)
if owner and owner ~= ARGV[1] then
  return 0
end
redis.call('SET', key, ARGV[1], 'PX', ARGV[2])
return 1
