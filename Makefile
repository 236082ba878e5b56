# Plain names for the usual work. Everything but `setup` also works by hand through CMake.
.DEFAULT_GOAL := help
BUILD ?= build
JOBS ?= $(shell tools/jobs.sh)
CMAKE_FLAGS ?=
RECIPE ?= recipes/demo.yaml
FUZZ_SECONDS ?= 30

.PHONY: help setup setup-checks configure build demo test bench format format-check tidy asan \
  fuzz ci clean

help:  ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

setup:  ## Install the packages that building needs (apt; root or sudo)
	@tools/setup.sh build

setup-checks:  ## Install also clang and its tools, for asan, fuzz, format and tidy
	@tools/setup.sh checks

configure: setup
	@cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release -DLAPIDARY_BENCH=OFF $(CMAKE_FLAGS)

build: configure  ## Build everything
	@cmake --build $(BUILD) -j $(JOBS)

# The demonstration needs no tests: it builds the program alone.
demo: configure  ## Build, then train a small mixture-of-experts model on this machine
	@cmake --build $(BUILD) -j $(JOBS) --target lapidary
	@$(BUILD)/bin/lapidary train $(RECIPE)

test: build  ## Build, then run every test
	@ctest --test-dir $(BUILD) --output-on-failure -j $(JOBS)

bench: setup  ## Build and run the micro-benchmarks
	@cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release -DLAPIDARY_BENCH=ON $(CMAKE_FLAGS)
	@cmake --build $(BUILD) -j $(JOBS)
	@tools/bench.sh $(BUILD)

format: setup-checks  ## Lay out every source file
	@tools/format.sh

format-check: setup-checks  ## Say which source files are not laid out
	@tools/format.sh --check

tidy: setup-checks configure  ## Run clang-tidy on the sources
	@tools/tidy.sh $(BUILD)

asan: setup-checks  ## Run the unit tests under the address and undefined-behaviour sanitizers
	@cmake --preset asan
	@cmake --build --preset asan -j $(JOBS)
	@ctest --preset asan -j $(JOBS)

fuzz: setup-checks  ## Run every fuzz target for FUZZ_SECONDS (30)
	@cmake --preset fuzz
	@cmake --build --preset fuzz -j $(JOBS)
	@tools/fuzz.sh build-fuzz $(FUZZ_SECONDS)

ci:  ## Everything that continuous integration runs
	@.ci/run

clean:  ## Remove the build folders
	@rm -rf $(BUILD) build-asan build-fuzz
