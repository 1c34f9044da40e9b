# Each target does its own set-up from a bare Python 3.11 or newer: the only command to type.
# make demo    see two server processes share one store and one cache
# make test    all tests, on the servers that are found (docs: tests/servers.py)
# make matrix  the items of ADK's conformance list, with their evidence
# make model   every interleaving of the protocol, to the end (docs: tests/protocol/explorer/search.py)
# make bench   a few minutes of benchmarks against stock google-adk; bench-full: all of them, 15 minutes at most
# make lint    ruff and mypy
PYTHON ?=
export PYTHON
TESTS ?= tests

.PHONY: demo test matrix model bench bench-full lint lock clean
.SILENT:

demo:
	python=$$(.ci/python) && .ci/venv .venvs/demo "$$python" -e '.[demo]'
	.venvs/demo/bin/tiered-sessions demo

.PHONY: dev
dev:
	python=$$(.ci/python) && .ci/venv .venv "$$python" -e '.[all,dev,adk]' 'google-adk[a2a]==2.13.0'

test: dev
	.venv/bin/python -m pytest -q -n 2 --dist loadfile --ignore tests/histories $(TESTS)
	.venv/bin/python -m pytest -q tests/histories

matrix: dev
	.venv/bin/python -m tests.adk.matrix

model: dev
	.venv/bin/python -m tests.protocol.explorer_mixes

# Servers: TIERED_SESSIONS_TEST_POSTGRESQL, _MYSQL and _REDIS, else those on this machine's standard ports.
bench bench-full:
	python=$$(.ci/python) && .ci/venv .venvs/bench "$$python" -e '.[all,dev,adk,bench]' google-adk==2.13.0
	mkdir -p build/bench
	.venvs/bench/bin/python -m bench --$(if $(filter bench-full,$@),full,quick) --json build/bench/$@.json \
		--markdown build/bench/$@.md --plot build/bench/$@

lint: dev
	.venv/bin/ruff check .
	.venv/bin/mypy

lock: dev
	.venv/bin/python -m pip install --quiet uv
	.venv/bin/uv pip compile pyproject.toml --extra all --extra dev --universal --python-version 3.11 \
		--quiet --no-header --no-annotate --no-emit-index-url --no-emit-find-links --upgrade -o requirements.lock

clean:
	rm -rf .venv .venvs build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
