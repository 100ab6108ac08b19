# Everything runs in .venv; each stamp says that what it is named for is installed there.
PYTHON ?= python3
# Options for pip when it installs PyTorch, e.g. those of its CPU build.
TORCH_ARGS ?=
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin

.PHONY: serve build test run check spell validate format clean

serve: $(VENV)/.site  ## validate, build and serve the site
	$(BIN)/genai-kb validate
	$(BIN)/genai-kb site serve --port $(PORT)

build: $(VENV)/.site  ## validate and build the site into site/
	$(BIN)/genai-kb validate
	$(BIN)/genai-kb site build

test: $(VENV)/.test  ## run the whole test suite
	$(BIN)/python -m pytest -n 2

run: $(VENV)/.run  ## measure an entry: make run SLUG=lora
	$(BIN)/genai-kb run $(SLUG)

validate: $(VENV)/.site  ## check the roadmap
	$(BIN)/genai-kb validate

check: $(VENV)/.check  ## format, lint, types, workflows
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy genai_kb reproductions/lab benchmarks tests
	$(BIN)/zizmor --offline --persona=pedantic --quiet .github

spell: $(VENV)/.site build/node/.installed  ## spelling in both languages; needs Node.js and npm
	rm -rf build/prose
	$(BIN)/genai-kb export prose --lang en --out build/prose/en
	$(BIN)/genai-kb export prose --lang es --out build/prose/es
	build/node/node_modules/.bin/cspell --config cspell.json --no-progress --no-summary --unique "build/prose/**"

format: $(VENV)/.check  ## mend the format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the built site, keep .venv
	rm -rf site build

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

build/node/.installed: Makefile
	npm install --silent --no-save --no-audit --no-fund --prefix build/node cspell@9.8.0 @cspell/dict-es-es@3.0.8
	touch $@

$(VENV)/.site: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[site]"
	touch $@

$(VENV)/.torch: $(BIN)/python
	$(BIN)/python -m pip install --quiet $(TORCH_ARGS) torch==2.13.0
	touch $@

$(VENV)/.run: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[run,peft]"
	touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[site,run,peft,test]"
	touch $@

$(VENV)/.check: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --editable ".[check]"
	touch $@
