# make quickstart   from demo faces to samples of a trained model, some minutes on two cores
# make test         everything the tests need, then the tests; ARGS=... runs a part of them
# make docs         the site with the API reference, in site/
# make check        format, lint, types, and that imports run downwards
# make audit        asks PyPI for known holes in the installed packages

override PYTHON := $(or $(PYTHON),python3)
override VENV := $(or $(VENV),.venv)
BIN := $(VENV)/bin
RUN := runs/quickstart

RECENT = import sys; sys.version_info >= (3, 10) or sys.exit( \
	"error: %s is Python %s, and 3.10 or newer is needed; %s" % (sys.executable, sys.version.split()[0], sys.argv[1]))

.PHONY: quickstart test check audit docs recent
.DELETE_ON_ERROR:

quickstart: $(VENV)/demo.done
	$(BIN)/python tools/make_shards.py demo:faces shards/faces32 --size 32
	$(BIN)/python cluster/launch.py -m local experiment=quickstart
	$(BIN)/python tools/sample.py $(RUN) --count 64 --out $(RUN)/faces.png
	@echo
	@echo "64 faces:             $(CURDIR)/$(RUN)/faces.png"
	@echo "how they came to be:  $(CURDIR)/$(RUN)/samples/"
	@echo "what happened:        $(CURDIR)/$(RUN)/report.html"
	@echo "curves:               $(BIN)/tensorboard --logdir $(RUN)/tensorboard"

test: $(VENV)/test.done
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder --ignore tests/slurm
	$(BIN)/python -m pytest tests/slurm  # one after another: their cluster has the cores to itself
endif

docs: $(VENV)/docs.done
	$(BIN)/mkdocs build --strict
	@echo "the site: $(CURDIR)/site/index.html"

check: $(VENV)/test.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: $(VENV)/test.done
	$(BIN)/python -m pip install --quiet 'pip-audit>=2.7'
	$(BIN)/pip-audit --skip-editable

$(VENV)/bin/python:
	@$(PYTHON) -c '$(RECENT)' "choose another: make PYTHON=python3.12"
	$(PYTHON) -m venv $(VENV)

recent: | $(VENV)/bin/python  # an environment of an older Python may be there
	@$(BIN)/python -c '$(RECENT)' "remove $(VENV), and choose another: make PYTHON=python3.12"

$(VENV)/demo.done: pyproject.toml | recent
	$(BIN)/python -m pip install --quiet --editable '.[demo,eval]'
	touch $@

$(VENV)/test.done: pyproject.toml | recent
	$(BIN)/python -m pip install --quiet --editable '.[demo,eval,test]'
	touch $@

$(VENV)/docs.done: pyproject.toml | recent
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@
