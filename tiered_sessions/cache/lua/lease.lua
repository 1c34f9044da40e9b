-- ARGV: token, lease life. Asks for the right to fill; returns the word and the time.
local was = redis.call('HMGET', key, 'p', 'r', 'ex', 'ld')
local _, live, expired = masks(was[1])
local ended = was[3] and was[3] ~= '' and tonumber(was[3]) <= now
-- The writer of an expired mask died and may have committed (R4); or the session has expired.
if expired or (live == '' and ended) then
  forget(live)
  was = {}
end
if live ~= '' then
  return {'MASKED', int(now)}
end
if was[2] then
  return {'PRESENT', int(now)}
end
if tonumber(was[4] or '0') > now then
  return {'WAIT', int(now)}
end
redis.call('HSET', key, 'l', ARGV[1], 'lt', int(now), 'ld', int(now + tonumber(ARGV[2])))
live_at_least(2 * tonumber(ARGV[2]))
return {'GRANTED', int(now)}
