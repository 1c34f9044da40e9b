"""A server that seems to live by a test's clock.

The scripts run verbatim behind a prelude that answers TIME, PTTL and PEXPIRE from the test's
clock. That clock is far in the future, so the server itself never lets a key expire: the prelude
does, as the reference does.
"""

from __future__ import annotations

from collections.abc import Sequence

from redis.exceptions import NoScriptError

from tiered_sessions.cache.connections import Answers, Connections
from tiered_sessions.cache.redis import RedisSessionCache
from tiered_sessions.cache.resp import Command, Packed
from tiered_sessions.testing.clocks import START
from tiered_sessions.testing.clocks import ManualClock as Clock

__all__ = ["START", "Clock", "live_by"]

VIRTUAL = """
local real, NOW = redis, %d
local redis = {}
function redis.call(name, key, ...)
  if name == 'TIME' then
    return {string.format('%%.0f', math.floor(NOW / 1000)), string.format('%%.0f', NOW %% 1000 * 1000)}
  elseif name == 'PTTL' then
    local at = real.call('PEXPIRETIME', key)
    return at < 0 and at or at - NOW
  elseif name == 'PEXPIRE' then
    return real.call('PEXPIREAT', key, string.format('%%.0f', NOW + tonumber((...))))
  elseif name == 'SET' then
    local value, _, life = ...
    real.call('SET', key, value)
    return real.call('PEXPIREAT', key, string.format('%%.0f', NOW + tonumber(life)))
  end
  return real.call(name, key, ...)
end
do
  local at = real.call('PEXPIRETIME', KEYS[1])
  if at >= 0 and at < NOW then real.call('DEL', KEYS[1]) end
end
"""


class VirtualTime:
    """Connections whose server seems to live by `clock`."""

    def __init__(self, inner: Connections, clock: Clock) -> None:
        self.inner = inner
        self.clock = clock

    def groups(self, names: Sequence[str]) -> Sequence[Sequence[str]]:
        return self.inner.groups(names)

    async def fly(self, name: str, commands: Packed) -> Answers:
        prelude = VIRTUAL % self.clock.now
        sent: list[Command] = []
        for command in commands:
            if command[0] == "EVALSHA":
                return Answers("", [NoScriptError("as if flushed")] * len(commands))
            if command[0] == "EVAL":
                (_, text, *rest) = command
                command = ("EVAL", f"{prelude}\n{text}", *rest)
            elif command[0] != "TIME":
                await self.inner.fly(name, Packed([("EVAL", prelude, 1, str(command[1]))]))
            sent.append(command)
        answers = await self.inner.fly(name, Packed(sent))
        if sent[0][0] == "TIME":
            answers.replies[0] = [self.clock.now // 1000, self.clock.now % 1000 * 1000]
        return answers

    async def close(self) -> None:
        await self.inner.close()


def live_by(cache: RedisSessionCache, clock: Clock) -> None:
    """Makes the server behind `cache` seem to live by `clock`."""
    cache._connections = VirtualTime(cache._connections, clock)
