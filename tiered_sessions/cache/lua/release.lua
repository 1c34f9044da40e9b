-- ARGV: token. Takes its mask away, expired or not: its write is known to have changed nothing. Or its lease.
local was = redis.call('HMGET', key, 'p', 'l')
local packed = masks(was[1], ARGV[1])
if packed == '' then
  redis.call('HDEL', key, 'p')
else
  redis.call('HSET', key, 'p', packed)
end
if was[2] == ARGV[1] then
  redis.call('HDEL', key, 'l', 'lt', 'ld')
end
return 'OK'
