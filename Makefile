# Long runs; everything else is in ./run
.PHONY: check bench-fs bench-start snapshotter-sequences soak fuzz chaos

check:
	./run check

# about an hour on two cores; BENCH="--suite files --runs 3" changes it
bench-fs:
	./run install
	mkdir -p docs/benchmarks
	.venv/bin/python -m benchmarks.fs $(BENCH) --json > docs/benchmarks/fs.json
	.venv/bin/python -m benchmarks.fs --table docs/benchmarks/fs.json

# cold starts of containers by several snapshotters, half an hour; IMAGES: a folder of OCI layouts, see benchmarks/start;
# WORK keeps registry and repository, START="--way profile --runs 2" changes what is measured
WORK ?= /var/tmp/unpackd-start
bench-start: containerd-2 nerdctl stargz
	./run install
	.venv/bin/python -m benchmarks.start --work $(WORK) prepare --images $(IMAGES)
	.venv/bin/python -m benchmarks.start --work $(WORK) measure $(START) --out docs/benchmarks/start.jsonl
	.venv/bin/python -m benchmarks.start table docs/benchmarks/start.jsonl

# 500 random sequences of operations on the snapshotter, killed and restarted in between
snapshotter-sequences:
	./run install
	UNPACKD_SEQUENCES=500 .venv/bin/pytest -s --timeout=7200 tests/conformance/snapshotter/test_sequences.py

# an hour; SOAK="--seconds 600 --frontend pyfuse3" changes it
soak:
	./run install
	.venv/bin/python -m benchmarks.soak --pause 0.5 --nice 10 $(SOAK) --json > docs/benchmarks/soak.json

include clients.mk
include convert.mk

include publish.mk

# FUZZ="--seconds 600 manifest" changes it
fuzz:
	./run install
	.venv/bin/python -m pip install --quiet 'atheris>=3'
	.venv/bin/python -m tests.fuzz $(FUZZ)

# snapshotter, FUSE daemon and containerd are killed at random for 20 minutes under containers that work
chaos:
	./run install
	UNPACKD_CHAOS_S=1200 .venv/bin/pytest -s tests/integration/snapshotter/test_chaos.py
