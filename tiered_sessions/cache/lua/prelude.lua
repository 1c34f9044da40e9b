-- Stands before every script. A script works on KEYS[1] alone, by the clock of the server that
-- runs it. cache/memory.py says the same in Python; consistency.md 5.1 gives the reasons.
local key = KEYS[1]
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)

local function int(number)
  return string.format('%.0f', number)
end

-- The masks without that of `token`, packed as field `p` holds them; the live ones among them;
-- whether one has expired.
local function masks(token)
  local all, live, expired = {}, {}, false
  for deadline, owner in string.gmatch(redis.call('HGET', key, 'p') or '', '(%d+) ([^\n]*)\n') do
    if owner ~= token then
      local mask = deadline .. ' ' .. owner .. '\n'
      all[#all + 1] = mask
      if tonumber(deadline) > now then live[#live + 1] = mask else expired = true end
    end
  end
  return table.concat(all), table.concat(live), expired
end

local function set_masks(packed)
  if packed == '' then
    redis.call('HDEL', key, 'p')
  else
    redis.call('HSET', key, 'p', packed)
  end
end

-- Deletes the entry and the lease; the masks `packed` stay, and the key's life.
local function forget(packed)
  local ttl = redis.call('PTTL', key)
  redis.call('DEL', key)
  if packed ~= '' then
    redis.call('HSET', key, 'p', packed)
    redis.call('PEXPIRE', key, int(math.max(ttl, 1)))
  end
end

-- Says whether the entry's tag is the one in ARGV from `at` on. False without an entry.
local function tag_is(at)
  local tag = redis.call('HMGET', key, 'i', 'r', 'g', 'ut')
  return tag[1] == ARGV[at] and tag[2] == ARGV[at + 1] and tag[3] == ARGV[at + 2] and tag[4] == ARGV[at + 3]
end

-- A control field must live as long as it matters: never shortens (R15).
local function live_at_least(life)
  if redis.call('PTTL', key) < life then
    redis.call('PEXPIRE', key, int(life))
  end
end

-- An entry lives for the idle time, but never beyond its greatest age.
local function extend(idle, max_age)
  local left = tonumber(redis.call('HGET', key, 'fa')) + max_age - now
  redis.call('PEXPIRE', key, int(math.max(1, math.min(idle, left))))
end
