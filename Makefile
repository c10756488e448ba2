# make quickstart   demo faces to trained pictures, some minutes on two cores
# make test         everything the tests need, then the tests
# make check        format, lint, types

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := runs/quickstart

.PHONY: quickstart test check
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
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/test.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.done: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[demo,eval]'
	touch $@

$(VENV)/test.done: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[demo,eval,test]'
	touch $@
