# Nothing has to be installed first: each target sets up what is missing (scripts/prepare.py).
# CAPTURE= what `make run` reads (resolver.pcap beside it shows more), ARGS= arguments for pytest,
# the benchmarks and the like.

CAPTURE = tests/captures/raw-ip.pcap
ARGS =
BIN = .venv/bin

# Without their bytecode a sensor's modules are compiled anew at each of a thousand starts.
unexport PYTHONDONTWRITEBYTECODE
unexport PYTHONPATH PYTHONHOME PYTHONOPTIMIZE PYTHONSAFEPATH PYTHONUSERBASE

# `sudo make` in somebody's checkout leaves nothing there that they couldn't remove: what the
# set-up makes is given to them, and what else Python, pytest and hypothesis would keep, isn't kept.
ifdef SUDO_UID
export PYTHONPYCACHEPREFIX = /root/.cache/gazer-bytecode
export PYTEST_ADDOPTS := $(PYTEST_ADDOPTS) -p no:cacheprovider
export HYPOTHESIS_STORAGE_DIRECTORY = /root/.cache/gazer-hypothesis
endif

.PHONY: build help setup run test fuzz differential soak bench bench-live wheel lint clean

build: ## set up and compile what is missing or has changed
	@sh scripts/setup.sh build

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' Makefile

setup: ## compiler, headers and .venv only
	@sh scripts/setup.sh setup

run: build ## print the transactions of a real capture (CAPTURE=another.pcap)
	$(BIN)/dns-gazer -r $(CAPTURE) -t -

# All tests in as many processes as there are cores (tests/parallel.py), a part of them in one.
test: build ## the whole test suite, or a part of it (ARGS='-k names')
	$(BIN)/python -m pytest $(or $(ARGS),-n auto)

fuzz: build ## fuzz with coverage and sanitizers, a minute a target (ARGS='-s 600 message')
	$(BIN)/python scripts/fuzz.py $(ARGS)

differential: build ## two million mutated messages against dnspython and dnslib
	$(BIN)/python -m tests.differential $(ARGS)

soak: build ## a live sensor, killed, stopped, rotated for 3 minutes; as root (ARGS=...)
	$(BIN)/python -m tests.soak $(ARGS)

bench: build ## measure speed and memory on generated traffic
	$(BIN)/python -m benchmarks $(ARGS)

bench-live: build ## the greatest rate over a cable without a drop (root, tcpreplay)
	$(BIN)/python -m benchmarks.live $(ARGS)

wheel: ## dist/: a wheel that carries libpcap, for sensors without a compiler, and the sdist
	@sh scripts/setup.sh setup
	@$(BIN)/python scripts/wheel.py $(ARGS)

lint: ## ruff, mypy and cython-lint
	@sh scripts/setup.sh build --extra lint
	$(BIN)/ruff check .
	$(BIN)/mypy
	PATH="$$PWD/$(BIN):$$PATH" cython-lint gazer tests/fuzz

clean: ## back to a fresh checkout: .venv and all that was built
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis bench-out
	find gazer \( -name '*.so' -o -name '*.c' \) -delete
	find . -name __pycache__ -prune -exec rm -rf {} +
