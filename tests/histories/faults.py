"""All faults: the rows of the matrix."""

from __future__ import annotations

from tests.histories import (
    faults_cache,
    faults_network,
    faults_process,
    faults_sql,
    faults_stock,
    faults_topology,
)
from tests.histories.faults_common import SCRIPTS, Injection
from tiered_sessions.cache.keys import FORMAT


def all_faults() -> list[Injection]:
    """Returns a new fault for each row, those of the cache first."""
    return [
        faults_network.Slow(0.01),
        faults_network.Slow(0.2),
        faults_network.Cut(),
        faults_network.HalfOpen(requests=True, replies=True),
        faults_network.HalfOpen(requests=True, replies=False),
        faults_network.HalfOpen(requests=False, replies=True),
        faults_network.RepliesSwallowed(),
        faults_network.Resets(),
        faults_cache.Paused(),
        faults_cache.ClientPause("ALL"),
        faults_cache.ClientPause("WRITE"),
        faults_topology.DebugSleep(),
        faults_cache.RestartedAtOnce(),
        faults_cache.Emptied(),
        faults_cache.OldSnapshot(),
        faults_cache.Flushed(),
        faults_cache.ScriptsFlushed(),
        faults_cache.NamespaceChanged(),
        faults_cache.Full("allkeys-lru"),
        faults_cache.Full("noeviction"),
        faults_topology.FailedOver(),
        faults_topology.SlotMoved(),
        faults_topology.ClockMoved(60),
        faults_topology.ClockMoved(-60),
        faults_network.HeldBack("the writes of server 0", SCRIPTS["intent"]),
        faults_network.HeldBack("the reads of server 0", FORMAT),
        faults_network.OneCutOff(1),
        faults_network.OneCut(2),
        faults_network.AllCutOff(),
        faults_network.DrainerCutOff(),
        *faults_process.steps(),
        faults_process.WrongClocks(),
        faults_process.RollingUpgrade(),
        faults_sql.Slow(),
        faults_sql.Stalled(),
        faults_sql.Terminated(),
        faults_sql.AcknowledgementLost(),
        faults_sql.RowsLocked(),
        faults_sql.Deadlock(),
        faults_sql.Serialization(),
        faults_sql.Restarted(),
        faults_sql.LostCommits(reset=False),
        faults_sql.LostCommits(reset=True),
        faults_stock.StockBeside(triggers=True),
        faults_stock.StockBeside(triggers=False),
    ]
