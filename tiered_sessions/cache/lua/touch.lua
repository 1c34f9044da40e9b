-- ARGV: tag (4), validated at, stamp, idle life, greatest age. Notes that the entry equals SQL.
if not tag_is(1) then
  return 0
end
local va = math.max(tonumber(redis.call('HGET', key, 'va')), tonumber(ARGV[5]))
redis.call('HSET', key, 'va', int(va), 'sv', ARGV[6])
extend(tonumber(ARGV[7]), tonumber(ARGV[8]))
return 1
