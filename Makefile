# SPDX-License-Identifier: GPL-3.0-or-later
# Every target does its own set-up first (root is needed for that on a fresh machine) and says what it does.
.DEFAULT_GOAL := help
SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
# ansible-runner, molecule and ansible-lint look up other programs on the PATH
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# npm trusts the certificate authorities that the machine trusts: its mirror may be behind one of its own
export NODE_USE_SYSTEM_CA := 1
COLLECTIONS := $(CURDIR)/playbooks/collections
COLLECTION := playbooks/collections/ansible_collections/titan/disaster_recovery
STAGE := .ci/stage

.PHONY: help setup drill drill-installed test stages-that-wait stages-that-compute lint unit campaign sanity build-check molecule drills soak sweep clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1	\2/' | expand -t 24

setup: ## install the Debian packages and make .venv
	@.ci/setup

SCENARIO ?= complete_system_failure
drill: setup ## lose a Titan server in the lab and recover it on a blank one; another disaster: SCENARIO=database_corruption [FAULT=hung]
	@echo 'drill: $(SCENARIO) in the lab; the first run also builds the lab images'
	.venv/bin/titan-dr drill $(SCENARIO) $(if $(FAULT),--fault $(FAULT))

drill-installed: setup ## the same drill with the collection built and installed elsewhere
	pytest -m lab -s tests/drills/test_installed.py

test: ## every check: setup, lint, unit, then drill and molecule beside campaign, sanity and build-check, then drills
	@$(STAGE) setup .ci/setup
	@$(STAGE) lint $(MAKE) lint
	@$(STAGE) unit $(MAKE) unit
	@$(MAKE) --jobs=2 --output-sync=target stages-that-wait stages-that-compute
	@$(STAGE) drills $(MAKE) drills

stages-that-wait:
	@$(STAGE) drill $(MAKE) drill
	@$(STAGE) molecule $(MAKE) molecule

stages-that-compute:
	@$(STAGE) campaign $(MAKE) campaign
	@$(STAGE) sanity $(MAKE) sanity
	@$(STAGE) build-check $(MAKE) build-check

lint: setup ## ruff, mypy, yamllint, changelog, ansible-lint (profile production)
	ruff check .
	mypy src
	mypy $(COLLECTION)/plugins
	yamllint --strict .
	antsibull-changelog lint
	ANSIBLE_COLLECTIONS_PATH=$(COLLECTIONS) ansible-lint --offline --strict

unit: setup ## tests that need no lab
	pytest -m 'not lab and not slow' -n 3 --dist loadfile

campaign: setup ## damage dumps and append only files in thousands of ways, hold verification against the servers' own checkers
	pytest -m 'not slow' -s tests/campaign
	pytest -m 'slow and not lab' -s tests/unit

sanity: setup ## ansible-test sanity on what the collection ships
	tests/sanity.sh

build-check: setup ## build and install the collection, check what is in it and which copy runs
	pytest tests/build

molecule: setup ## the molecule scenarios, on lab hosts
	MOLECULE_GLOB='molecule/*/molecule.yml' molecule test --all

drills: setup ## real faults against the lab
	pytest -m 'lab and not slow' -n 3 --dist loadfile --durations=15 tests/lab tests/drills

soak: setup ## the drills and the campaign that are too slow for every change
	pytest -m slow -s tests/campaign
	pytest -m 'lab and slow' --durations=15 tests/lab tests/drills

sweep: setup ## kill the controller at every point of every recovery (hours), and fifty times two operators; what failed once: TITAN_DR_SEED=N
	TITAN_DR_SWEEP=all pytest -m lab -s tests/drills/test_crash_points.py tests/drills/test_two_operators.py

clean: ## remove the lab's hosts and everything that was built here
	if [ -x .venv/bin/titan-dr ]; then for lab in .lab .lab/gw*; do TITAN_DR_LAB_DIR=$$lab .venv/bin/titan-dr lab down; done; fi
	rm -rf .venv .lab .cache .ansible build dist .pytest_cache .ruff_cache .mypy_cache src/*.egg-info
