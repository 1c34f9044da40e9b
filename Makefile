# Each target does its own set-up from a bare Python 3.11 or newer: the only command to type.
# make demo    see two server processes share one store and one cache
# make test    all tests, on the servers that are found (docs: tests/servers.py)
# make matrix  the items of ADK's conformance list, with their evidence
# make lint    ruff and mypy
PYTHON ?=
export PYTHON
TESTS ?= tests

.PHONY: demo test matrix lint lock clean
.SILENT:

demo:
	python=$$(.ci/python) && .ci/venv .venvs/demo "$$python" -e '.[demo]'
	.venvs/demo/bin/tiered-sessions demo

.PHONY: dev
dev:
	python=$$(.ci/python) && .ci/venv .venv "$$python" -e '.[all,dev,adk]' 'google-adk[a2a]==2.13.0'

test: dev
	.venv/bin/python -m pytest -q -n 2 --dist loadfile $(TESTS)

matrix: dev
	.venv/bin/python -m tests.adk.matrix

lint: dev
	.venv/bin/ruff check .
	.venv/bin/mypy

lock: dev
	.venv/bin/python -m pip install --quiet uv
	.venv/bin/uv pip compile pyproject.toml --extra all --extra dev --universal --python-version 3.11 \
		--quiet --no-header --no-annotate --no-emit-index-url --no-emit-find-links --upgrade -o requirements.lock

clean:
	rm -rf .venv .venvs build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
