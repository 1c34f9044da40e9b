-- ARGV: token, lease life. Asks for the right to fill; returns the word and the time.
local _, live, expired = masks()
if expired then
  forget(live) -- its writer died and may have committed (R4)
end
if live ~= '' then
  return {'MASKED', int(now)}
end
local ex = redis.call('HGET', key, 'ex')
if ex and ex ~= '' and tonumber(ex) <= now then
  forget(live) -- its session has expired
end
if redis.call('HEXISTS', key, 'r') == 1 then
  return {'PRESENT', int(now)}
end
if tonumber(redis.call('HGET', key, 'ld') or '0') > now then
  return {'WAIT', int(now)}
end
redis.call('HSET', key, 'l', ARGV[1], 'lt', int(now), 'ld', int(now + tonumber(ARGV[2])))
live_at_least(2 * tonumber(ARGV[2]))
return {'GRANTED', int(now)}
