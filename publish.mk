# Long runs of the publisher
.PHONY: corpus kills writers bench-publish

# trees at full size (1 M entries, 10 GiB sparse): needs 12 GB of disk, 4 GB of memory, about an hour
corpus:
	./run install
	UNPACKD_TEST_CORPUS=full .venv/bin/pytest -s tests/integration/fs/test_corpus.py

# SIGKILL before each change that a publisher makes to the disk
kills:
	./run install
	UNPACKD_TEST_KILLS=all .venv/bin/pytest -s --timeout=3600 tests/integration/fs/test_kill_every_step.py

# 200 grafts by eight writers on two machines
writers:
	./run install
	UNPACKD_TEST_GRAFTS=25 .venv/bin/pytest -s tests/integration/fs/test_many_writers.py

# in memory, because a disk remembers what was deleted before
bench-publish:
	./run install
	TMPDIR=/dev/shm .venv/bin/python -m benchmarks.publish --json > docs/benchmarks/publish.json
