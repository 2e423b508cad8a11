# Every target installs first what it needs, into .venv.

PYTHON    ?= python3
# More options for pip, for instance an index that holds PyTorch builds for the CPU.
PIP_EXTRA ?=
SOURCE    ?= examples/short-history-of-the-world.pdf
QUESTION  ?= Which dynasty did Kublai Khan found?
BUDGET    ?= 1k
PYTEST    ?=
BENCH_METHODS ?= full,recall,passages,learned,keydiff,question
BENCH_PICTURES ?= memory seconds answers quality card

STAMP := .venv/installed

export QUESTION

.DEFAULT_GOAL := help
.PHONY: help install ask test check types docs tables pictures bench soak wheel sbom man clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo '  make ask SOURCE=book.pdf QUESTION="Who inherits the mill?" BUDGET=8k'

install: $(STAMP)  ## set up .venv (PYTHON=python3.12 picks the interpreter)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo 'error: Python 3.10 or newer is needed: make PYTHON=python3.12' >&2; exit 1; }
	@test -x .venv/bin/pip || $(PYTHON) -m venv .venv
	@echo 'installing indexmem and its dependencies into .venv (a few minutes the first time)'
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt $(PIP_EXTRA) --editable '.[dev]'
	@touch $@
	@echo 'installed'

ask: install  ## ask the example book a question (QUESTION, SOURCE, BUDGET)
	@INDEXMEM_HOME=$${INDEXMEM_HOME:-.indexmem} .venv/bin/indexmem ask $(SOURCE) "$$QUESTION" --budget $(BUDGET)

test: install  ## run the tests (PYTEST="-m slow" passes options on)
	@.venv/bin/python -m pytest $(PYTEST)

types: install  ## check the types of the package
	@.venv/bin/mypy

check: install  ## lint, formatting, types, and whether README's tables are current
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/indexmem bench tables --check
	@.venv/bin/mypy

docs: install  ## build dist/site from docs/, whose pages on the code are made anew
	@.venv/bin/python docs/generate.py
	@NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict --quiet

define remake_tables
@.venv/bin/indexmem bench tables
@.venv/bin/indexmem bench pictures $(BENCH_PICTURES) --out docs/pictures
endef

tables: install  ## make README's tables and pictures from benchmarks/results
	$(remake_tables)

pictures: install  ## record README's terminal session anew (needs tmux; some minutes)
	@.venv/bin/python docs/record_terminal.py

# Within 20 minutes on two cores; the longer runs stand in benchmarks/README.md.
bench: install  ## measure memory, speed and quality, remake README's tables (under 20 minutes)
	@.venv/bin/indexmem bench memory --runs 1 --lengths 4k,16k,64k,256k --full-lengths 4k,16k
	@.venv/bin/indexmem bench memory --methods recall,passages,learned,keydiff --runs 1 --lengths 4k,16k --full-lengths none
	@.venv/bin/indexmem bench speed --repeats 1 --lengths 16k
	@.venv/bin/indexmem bench quality --suite needle --count 20 --methods $(BENCH_METHODS)
	@.venv/bin/indexmem bench quality --count 3 --methods $(BENCH_METHODS)
	@.venv/bin/indexmem bench quality --suite loss --count 3 --methods full,learned,learned-shuffled,recency
	$(remake_tables)

soak: install  ## the long tests of reliability (hours; rows go to benchmarks/results)
	@.venv/bin/python -m pytest --timeout 0 -m slow tests/test_hostile.py tests/test_faults.py
	@.venv/bin/python benchmarks/fuzz.py --mutations 2000 $(if $(CORPUS),--corpus $(CORPUS))
	@.venv/bin/python benchmarks/fuzz_memories.py --cases 10000
	@.venv/bin/python benchmarks/crash.py --kills 500
	@.venv/bin/python benchmarks/soak.py --tokens 5000000 --turns 10000 --requests 2000

sbom: install  ## write dist/indexmem.cdx.json, a list of all that is installed
	@mkdir -p dist
	@test -x .venv/sbom/bin/cyclonedx-py || { $(PYTHON) -m venv .venv/sbom \
		&& .venv/sbom/bin/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0; }
	@.venv/sbom/bin/cyclonedx-py environment .venv/bin/python --pyproject pyproject.toml \
		--output-reproducible --output-file dist/indexmem.cdx.json

wheel: install  ## build dist/*.whl, which carries the embedded model
	@.venv/bin/python -m build --wheel --no-isolation

man: install  ## write the manual page, indexmem.1
	@.venv/bin/indexmem man > indexmem.1

clean:  ## remove builds and caches; .venv stays
	rm -rf build dist indexmem.1 .pytest_cache .ruff_cache
	find . -name .venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
