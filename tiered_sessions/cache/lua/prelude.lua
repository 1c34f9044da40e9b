-- Stands before every script. A script works on KEYS[1] alone, by the clock of the server that
-- runs it, and reads what it needs by one command: each more costs the server more than most of
-- the rest. cache/memory.py says the same in Python; consistency.md 5.1 gives the reasons.
local key = KEYS[1]
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)

local function int(number)
  return string.format('%.0f', number)
end

-- Of the masks that field `p` holds, those without that of `token`, packed in the same way; the live
-- ones among them; whether one has expired.
local function masks(p, token)
  local all, live, expired = '', '', false
  if p then
    for deadline, owner in string.gmatch(p, '(%d+) ([^\n]*)\n') do
      if owner ~= token then
        local mask = deadline .. ' ' .. owner .. '\n'
        all = all .. mask
        if tonumber(deadline) > now then live = live .. mask else expired = true end
      end
    end
  end
  return all, live, expired
end

-- Leaves the masks `packed`, and no lease.
local function control(packed)
  if packed == '' then
    redis.call('HDEL', key, 'p', 'l', 'lt', 'ld')
  else
    redis.call('HDEL', key, 'l', 'lt', 'ld')
    redis.call('HSET', key, 'p', packed)
  end
end

-- Deletes the entry and the lease; the masks `packed` stay, and the key's life.
local function forget(packed)
  local ttl = packed ~= '' and redis.call('PTTL', key)
  redis.call('DEL', key)
  if ttl then
    redis.call('HSET', key, 'p', packed)
    redis.call('PEXPIRE', key, int(math.max(ttl, 1)))
  end
end

-- Says whether the fields `was` from `first` on are the tag in ARGV from `at` on. False without an entry.
local function tag_is(was, first, at)
  for place = 0, 3 do
    if was[first + place] ~= ARGV[at + place] then return false end
  end
  return true
end

-- A control field must live as long as it matters: never shortens (R15).
local function live_at_least(life)
  if redis.call('PTTL', key) < life then
    redis.call('PEXPIRE', key, int(life))
  end
end

-- An entry filled at `fa` lives for the idle time, but never beyond its greatest age.
local function extend(fa, idle, max_age)
  local left = tonumber(fa) + max_age - now
  redis.call('PEXPIRE', key, int(math.max(1, math.min(idle, left))))
end
