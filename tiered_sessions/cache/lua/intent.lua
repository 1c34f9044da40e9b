-- ARGV: token, mask life. Masks the entry, revokes the lease; returns the time.
local was = redis.call('HMGET', key, 'p', 'l')
local packed = masks(was[1], ARGV[1])
redis.call('HSET', key, 'p', packed .. int(now + tonumber(ARGV[2])) .. ' ' .. ARGV[1] .. '\n')
if was[2] then
  redis.call('HDEL', key, 'l', 'lt', 'ld')
end
live_at_least(2 * tonumber(ARGV[2]))
return int(now)
