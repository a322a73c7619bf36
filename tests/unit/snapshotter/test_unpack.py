from snapshotter.labels import CRI_IMAGE_LAYERS, CRI_LAYER_DIGEST, LIMIT_BYTES, SNAPSHOT_REF
from snapshotter.unpack import Layer, layer_labels


def layers(count: int) -> list[Layer]:
    return [
        Layer(
            media_type="t",
            digest=f"sha256:{number:064x}",
            size_bytes=1,
            diff_id=f"sha256:{number + 1000:064x}",
            chain_id=f"sha256:{number + 2000:064x}",
            parent_chain_id="",
        )
        for number in range(count)
    ]


def test_a_layer_is_asked_for_with_itself_and_those_above() -> None:
    stack = layers(3)

    labels = layer_labels(stack, 1, image_name="r/i:t", manifest_digest="sha256:m")

    assert labels[SNAPSHOT_REF] == stack[1].chain_id
    assert labels[CRI_LAYER_DIGEST] == stack[1].digest
    assert labels[CRI_IMAGE_LAYERS] == f"{stack[1].digest},{stack[2].digest}"


def test_the_list_of_layers_fits_into_a_label() -> None:
    labels = layer_labels(layers(100), 0, image_name="r/i:t", manifest_digest="sha256:m")

    value = labels[CRI_IMAGE_LAYERS]
    assert len(CRI_IMAGE_LAYERS) + len(value) <= LIMIT_BYTES
    assert all(len(digest) == 71 for digest in value.split(","))
