-- ARGV: token. Takes one mask away, expired or not: its write is known to have changed nothing.
local packed = masks(redis.call('HGET', key, 'p'), ARGV[1])
if packed == '' then
  redis.call('HDEL', key, 'p')
else
  redis.call('HSET', key, 'p', packed)
end
return 'OK'
