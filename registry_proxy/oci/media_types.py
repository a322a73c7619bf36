"""Media types of what a registry keeps.

Source: OCI image-spec, "media-types.md"; Docker's "Image Manifest Version 2, Schema 2".
"""

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"  # withdrawn before 1.1, still met
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
OCTET_STREAM = "application/octet-stream"

INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
SCHEMA_1 = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)

ACCEPTED_MANIFESTS = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, OCI_ARTIFACT)
"""What requests for manifests list as acceptable: everything, for a registry that chooses must not choose for us."""

IMAGE_CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})

_LAYER_PREFIXES = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
)
_COMPRESSIONS = ("", "+gzip", ".gzip", "+zstd", ".zstd")
LAYERS = frozenset(prefix + compression for prefix in _LAYER_PREFIXES for compression in _COMPRESSIONS)

_ARTIFACT_NAMES = {
    "application/vnd.cncf.helm.config.v1+json": "a Helm chart",
    "application/vnd.sylabs.sif.config.v1+json": "a Singularity image file (SIF)",
    "application/vnd.wasm.config.v1+json": "a WebAssembly module",
    "application/vnd.wasm.config.v0+json": "a WebAssembly module",
    "application/vnd.docker.plugin.v1+json": "a Docker plugin",
    "application/vnd.cncf.flux.config.v1+json": "a Flux source",
    "application/vnd.dev.cosign.artifact.sig.v1+json": "a cosign signature",
    OCI_EMPTY: "an artifact without a config",
}


def is_foreign(media_type: str) -> bool:
    """True for layers that a registry need not have (Windows base layers and the like)."""
    return ".foreign." in media_type or ".nondistributable." in media_type


def is_encrypted(media_type: str) -> bool:
    """True for layers in the encrypted form of the ocicrypt project."""
    return media_type.endswith("+encrypted")


def artifact_name(media_type: str) -> str:
    """What something with a config of *media_type* is, in words."""
    return _ARTIFACT_NAMES.get(media_type, "an artifact")
