# `make run` and `make test` set up all they need; a second run finds it there and takes seconds.
# What set-up does is in .setup/: one short script for each part.

.DEFAULT_GOAL := help

# Container images often forbid it: then each start of bock or bockd would compile all of their modules.
export PYTHONDONTWRITEBYTECODE =

.PHONY: help run run-ceph test test-fast test-floors test-walk test-clients
.PHONY: test-openstack-clients test-debian13 test-keystone soak soak-cuts soak-kills faults damage fuzz sanitize setup
.PHONY: sanitize-threads test-kills test-ceph test-ceph-driver test-ceph-debian13 soak-ceph soak-write-back
.PHONY: deb test-deb test-systemd oci test-oci test-python docs setup-oci
.PHONY: setup-run setup-ceph setup-check setup-test setup-bench
.PHONY: test-dashboard test-profiles test-random screenshot
.PHONY: check bench bench-quick bench-micro profile lock clean

help: ## show this
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 15

run: setup-run ## set up what the daemon needs and start it (Ctrl-C stops it; ARGS='--mount DIRECTORY')
	@exec .venv/bin/bockd serve $(ARGS)

run-ceph: setup-run setup-ceph ## start it on a Ceph cluster of its own, which is thrown away at the end (Ctrl-C)
	@exec .venv/bin/python -m tests.drivers.rbd.running $(ARGS)

# The hostile tests measure how long others wait: no other tests run beside them. The others wait for much
# themselves: four processes keep two cores busy. tests/scheduling.py says which of them has which, in which order.
test: setup ## set up everything and run the tests (ARGS='-k name' for some of them)
ifeq ($(ARGS),)
	@.venv/bin/python -m pytest tests/hostile
	@.venv/bin/python -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder --ignore tests/hostile
else
	@.venv/bin/python -m pytest $(ARGS)
endif

# What needs no guest, no mount and no series of kills: less than three minutes on two cores.
FAST = $(addprefix tests/,api blockstorage config dashboard drivers identity index nbd openstack pool profiles runtime setup throttle) --ignore=tests/blockstorage/test_kill.py

test-fast: setup-test ## run the tests that need no guest, no mount and no series of kills
	@.venv/bin/python -m pytest --numprocesses 2 --dist loadfile $(FAST) $(ARGS)

test-floors: setup-test ## run those with each dependency at the lowest release that pyproject.toml admits
	@.setup/floors
	@.cache/floors/bin/python -m pytest --numprocesses 2 --dist loadfile $(FAST) $(ARGS)

test-walk: setup-test ## walk README.md's walk in clean roots of Debian 12 and 13, as root and as a user
	@.setup/walk bookworm
	@.setup/walk trixie

test-debian13: ## run the tests in a root of Debian 13, made in .cache (as root; ARGS as above)
	@.setup/tree-in trixie make test ARGS="$(ARGS)"

# Suites whose daemons may serve a cluster; what is left out there is listed in docs/ceph.md.
CEPH_SUITES = $(addprefix tests/,attach cli daemon/test_trash.py openstack walk)

test-ceph: setup-test ## test pools in Ceph: a cluster in trouble, and the suites over daemons (ARGS as above)
ifeq ($(ARGS),)
	@.venv/bin/python -m pytest tests/drivers/rbd -m ceph_trouble -rP
	@BOCKD_TEST_DRIVER=rbd .venv/bin/python -m pytest --numprocesses 2 --dist loadfile $(CEPH_SUITES)
else
	@BOCKD_TEST_DRIVER=rbd .venv/bin/python -m pytest $(ARGS)
endif

test-profiles: setup-test ## measure what device profiles claim, on a machine that does nothing else
	@.venv/bin/python -m pytest tests/daemon/test_profiles.py -m profile_times

test-ceph-driver: setup-test ## run all tests of the driver for Ceph (ARGS as above)
	@.venv/bin/python -m pytest tests/drivers/rbd -m 'ceph_trouble or not ceph_trouble' $(ARGS)

test-ceph-debian13: ## the same in a root of Debian 13, with its release of Ceph (as root; ARGS as above)
	@.setup/tree-in trixie make test-ceph-driver ARGS="$(ARGS)"

test-kills: setup-test ## kill daemons and commands at more of their steps: minutes, and not in `make test`
	@.venv/bin/python -m pytest tests/crash tests/daemon -m long_kills $(ARGS)

test-random: setup-test ## try five times as many random histories, examples and kills as `make test` (ARGS as above)
	@BOCKD_TEST_AMOUNT=5 .venv/bin/python -m pytest --numprocesses 2 --dist loadfile $(or $(ARGS),$$(grep -rl 'tests.amounts import' tests --include 'test_*.py'))

test-dashboard: setup-test ## drive the dashboard in a real Chromium, which this installs (ARGS as above)
	@.setup/packages .setup/packages-dashboard
	@.venv/bin/python -m pytest tests/dashboard -m browser $(ARGS)

screenshot: setup-test ## take the picture of docs/dashboard.md anew
	@.setup/packages .setup/packages-dashboard
	@BOCKD_SCREENSHOT=docs/dashboard.png .venv/bin/python -m pytest tests/dashboard -m browser -k charts

test-keystone: setup ## run the tests that need a real Keystone, which this installs into .cache
	@.setup/keystone
	@.venv/bin/python -m pytest tests/identity/keystone -m real_keystone $(ARGS)

test-clients: setup ## run each release of each NBD client against a daemon (roots of other releases in .cache)
	@.venv/bin/python -m pytest tests/clients -m released_clients $(ARGS)

test-openstack-clients: setup ## run openstack, cinder and pkgcloud, which this installs into .cache
	@.setup/openstack-clients
	@.venv/bin/python -m pytest tests/openstack -m openstack_clients $(ARGS)

# The releases that packages are built for, each in a root of its own.
SUITES = bookworm trixie noble

deb: ## build the packages into dist/, each in a clean root of its release (as root; SUITES=trixie for one)
	@set -e; for suite in $(SUITES); do .packaging/deb $$suite; done

test-deb: setup-test deb ## build them; install, use, upgrade and purge each on a clean machine (SUITES as above)
	@SUITES="$(SUITES)" .venv/bin/python -m pytest tests/packaging/test_deb.py -m packages $(ARGS)

test-systemd: setup-test ## build the package for Debian 13, have systemd run it, and cut a machine's power (as root)
	@.setup/packages .setup/packages-systemd
	@.setup/guest-kernel
	@$(MAKE) --no-print-directory deb SUITES=trixie
	@.venv/bin/python -m pytest tests/packaging/test_systemd.py tests/packaging/test_power_cut.py -m packages $(ARGS)

oci: setup-oci ## pack an OCI image of the package for Debian 13, which `make deb` has built (as root)
	@.packaging/oci

test-oci: setup-test ## build the package, pack the image, and start it by crun (as root)
	@$(MAKE) --no-print-directory deb oci SUITES=trixie
	@.venv/bin/python -m pytest tests/packaging/test_oci.py -m packages $(ARGS)

test-python: setup-test ## install by pip with the Python 3.11 to 3.14 of four releases (SUITES=forky for one)
	@$(if $(filter command line,$(origin SUITES)),SUITES="$(SUITES)") .venv/bin/python -m pytest tests/packaging/test_pip.py -m packages $(ARGS)

docs: setup-check ## make a site of the pages, dist/docs; a link or picture that leads nowhere is an error
	@rm -rf dist/docs
	@.venv/bin/sphinx-build -q -W --keep-going -n -c .packaging/site -d .cache/doctrees . dist/docs
	@echo dist/docs/index.html

soak: soak-kills soak-cuts ## both of these (ARGS='--seed 1' is for both)

soak-kills: setup ## kill the daemon 1,000 times (ARGS='--seed 1 --kills 100'; a failure names its seed)
	@.venv/bin/python -m tests.crash.storm $(ARGS)

soak-cuts: setup ## cut the power 5,000 times (ARGS='--seed 1 --cuts 100'; a failure names its seed)
	@.venv/bin/python -m tests.crash.powercut $(ARGS)

soak-ceph: setup ## kill gateways 200 times, hang 50 and kill 30 OSDs of a cluster (ARGS='--seed 1 --kills 20')
	@.venv/bin/python -m tests.drivers.rbd.storm $(ARGS)

soak-write-back: setup-test ## play 3,000 lives of a volume with write-back, and leave each rule out (ARGS='--seed 1 --lives 100')
	@.venv/bin/python -m tests.drivers.writeback.lives $(ARGS)

faults: setup ## let every write and sync of a pool's life fail (ARGS='--each 2' for some of each kind)
	@.venv/bin/python -m tests.crash.faults $(ARGS)

fuzz: setup ## fuzz the NBD protocol for ten minutes (ARGS='--target server --seconds 60')
	@.setup/atheris
	@.venv/bin/python -m tests.hostile.fuzz $(ARGS)

sanitize: setup-test ## run the compiled modules' tests, and fuzz the fast lane, with ASan and UBSan (ARGS='--seconds 600' fuzzes longer)
	@.setup/atheris
	@.setup/sanitized -m pytest --capture=sys $$(grep -lrE 'fastlane|server[.]sides|_syncing|rbd[._]+requests' tests --include 'test_*.py')
	@ASAN_OPTIONS=detect_leaks=0:fast_unwind_on_malloc=1 .setup/sanitized -m tests.hostile.fuzz --target lane $(or $(ARGS),--seconds 60)

sanitize-threads: setup-test ## run the tests of turns that connections take together with TSan
	@SANITIZER=thread .setup/sanitized -m pytest -n0 tests/nbd/server/test_together*.py

damage: setup ## damage every field of a pool, one at a time (ARGS='--seed 1 --each 5')
	@.venv/bin/python -m tests.corruption $(ARGS)

setup: setup-test ## set up everything: run, tests, benchmarks
	@.setup/guest-kernel

setup-test:
	@[ "$$(dpkg --print-architecture)" = amd64 ] || { echo 'setup: the tests need an amd64 machine, because they boot guests; make run does not' >&2; exit 1; }
	@.setup/packages .setup/packages-run
	@.setup/python dev & status=0; \
	.setup/packages .setup/packages-test .setup/packages-ceph || status=$$?; \
	wait $$! && exit $$status
	@.setup/libnbd
	@.setup/ceph

setup-run:
	@.setup/packages .setup/packages-run
	@.setup/python run

setup-ceph: setup-run
	@.setup/packages .setup/packages-ceph
	@.setup/ceph

setup-oci:
	@.setup/packages .setup/packages-oci

setup-check:
	@.setup/packages .setup/packages-run
	@.setup/python dev

check: setup-check ## format, lint, strict types, import rules
	@.setup/check

setup-bench: setup
	@.setup/packages .setup/packages-bench

# Without ARGS, where everything is measured, the result becomes the page.
BENCH_PAGE = --write docs/performance.md --chart docs/performance.svg --json docs/performance.json --other docs/performance-other.json

bench: setup-bench ## measure bockd against its peers into docs/performance.md, half an hour or more (ARGS=... measures less)
	@.venv/bin/python -m bench $(or $(ARGS),$(BENCH_PAGE))

bench-quick: setup-bench ## see that all of the benchmark works; its numbers mean little
	@.venv/bin/python -m bench --quick $(ARGS)

bench-micro: setup ## time single functions of the hot path
	@.venv/bin/python -m pytest bench/micro --benchmark-columns=min,median,rounds $(ARGS)

profile: setup ## draw where the daemon's time goes, profile.svg (ARGS='--mode randwrite --depth 1')
	@.venv/bin/python -m bench.profile $(ARGS)

lock: setup-check ## write requirements*.lock from pyproject.toml (ARGS=--upgrade for newer versions)
	@.setup/lock $(ARGS)

clean: ## remove what set-up and the tools made here; never touches a pool
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
