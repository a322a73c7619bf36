# Long runs; everything else is in ./run
.PHONY: check bench-fs snapshotter-sequences soak fuzz chaos

check:
	./run check

# about an hour on two cores; BENCH="--suite files --runs 3" changes it
bench-fs:
	./run install
	mkdir -p docs/benchmarks
	.venv/bin/python -m benchmarks.fs $(BENCH) --json > docs/benchmarks/fs.json
	.venv/bin/python -m benchmarks.fs --table docs/benchmarks/fs.json

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
