-- ARGV: token, mask life. Masks the entry, revokes the lease; returns the time.
local packed = masks(ARGV[1])
set_masks(packed .. int(now + tonumber(ARGV[2])) .. ' ' .. ARGV[1] .. '\n')
redis.call('HDEL', key, 'l', 'lt', 'ld')
live_at_least(2 * tonumber(ARGV[2]))
return int(now)
