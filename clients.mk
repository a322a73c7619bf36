# Real clients that Debian 12 does not have, for tests and comparisons; nothing of the product depends on them.
# Go programs come through the Go module proxy, Docker from Debian's next release, unpacked beside.
# `make clients` gets what is missing and runs the tests; each test skips, with a word, where its program is not there.
CLIENTS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/unpackd/clients
CONTAINERD_2 = v2.4.2
NERDCTL = v2.1.2
CSI_TEST = v5.6.0
DOCKER_SUITE = trixie

GO_BUILD = CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-buildvcs=false nice -n 4 go
APT = $(CLIENTS)/apt
APT_GET = apt-get -qq -o Dir::Etc::sourcelist=$(APT)/sources.list -o Dir::Etc::sourceparts=- -o Dir::State::lists=$(APT)/lists \
  -o Dir::Cache=$(APT)/cache -o Dir::State::status=/dev/null -o Dir::Etc::preferencesparts=- -o APT::Sandbox::User=root

.PHONY: clients clients-build containerd-2 nerdctl stargz docker csi-sanity

clients: clients-build
	./run install
	UNPACKD_CLIENTS=$(CLIENTS) .venv/bin/pytest -v tests/integration/snapshotter

clients-build:
	@for client in docker containerd-2 nerdctl stargz csi-sanity; do \
	  $(MAKE) --no-print-directory $$client || echo "$$client is not to be had here; its tests will be skipped" >&2; done

containerd-2: $(CLIENTS)/containerd-2/containerd
$(CLIENTS)/containerd-2/containerd:
	GOBIN=$(@D) $(GO_BUILD) install -tags no_btrfs,no_zfs,no_devmapper \
	  github.com/containerd/containerd/v2/cmd/ctr@$(CONTAINERD_2) \
	  github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2@$(CONTAINERD_2) \
	  github.com/containerd/containerd/v2/cmd/containerd@$(CONTAINERD_2)

# its go.mod replaces a module of its own tests, so it can only be built from another module
nerdctl: $(CLIENTS)/nerdctl/nerdctl
$(CLIENTS)/nerdctl/nerdctl:
	rm -rf $(@D) && mkdir -p $(@D)/tigron
	cd $(@D)/tigron && go mod init github.com/containerd/nerdctl/mod/tigron
	cd $(@D) && go mod init build && go mod edit -replace github.com/containerd/nerdctl/mod/tigron=./tigron
	cd $(@D) && $(GO_BUILD) get github.com/containerd/nerdctl/v2/cmd/nerdctl@$(NERDCTL)
	cd $(@D) && $(GO_BUILD) build -o $@ github.com/containerd/nerdctl/v2/cmd/nerdctl

stargz: $(CLIENTS)/stargz/containerd-stargz
$(CLIENTS)/stargz/containerd-stargz: tests/clients/stargz/main.go tests/clients/stargz/go.mod
	cd tests/clients/stargz && $(GO_BUILD) build -mod=readonly -o $@ .

csi-sanity: $(CLIENTS)/csi-sanity/csi-sanity
$(CLIENTS)/csi-sanity/csi-sanity:
	GOBIN=$(@D) $(GO_BUILD) install github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@$(CSI_TEST)

# needs libc 2.34, which Debian 12 has; the mirror is that of the machine's own sources
docker: $(CLIENTS)/docker/usr/sbin/dockerd
$(CLIENTS)/docker/usr/sbin/dockerd:
	mkdir -p $(APT)/lists/partial $(APT)/cache/archives/partial $(CLIENTS)/docker
	mirror=$$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -n 1); \
	  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $${mirror:-http://deb.debian.org/debian} $(DOCKER_SUITE) main" > $(APT)/sources.list
	$(APT_GET) update
	cd $(APT)/cache/archives && $(APT_GET) download docker.io docker-cli containerd
	for package in $(APT)/cache/archives/*.deb; do dpkg-deb -x $$package $(CLIENTS)/docker; done
