"""What workers convert with: the pipeline, and the repository that the settings name."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

import anyio

from converter.attestation import attest_result
from converter.config import ConversionSettings
from converter.conversion import ConversionRequest, ConversionResult
from converter.errors import FarmUsageError
from converter.farm_config import FarmSettings
from converter.jobs import Claim, Outcome
from converter.pipeline import convert_image
from converter.progress import Progress
from converter.sources import OCI, ImageSource, parse_source
from converter.target import open_target
from converter.terms import ALL
from converter.uploads import uploaded_layout
from registry_proxy.oci.manifest import Platform

if TYPE_CHECKING:
    from fs.publish.repository import Repository


class PipelineConverter:
    """A ``tasks.Converter`` that publishes images; the repository is opened by the process that converts."""

    def __init__(self, settings: ConversionSettings, farm: FarmSettings) -> None:
        """Check that *settings* name a repository.

        Raises:
            FarmUsageError: they do not.
        """
        if settings.repo is None or settings.storage is None or settings.keys is None:
            raise FarmUsageError("which repository? Set UNPACKD_REPO, UNPACKD_STORAGE and UNPACKD_KEYS")
        self._settings = settings
        self._database_url = farm.database_url
        self._limits = settings.limits.limits()
        self._takes_foreign = settings.foreign_layers == "fetch"
        self._attested = settings.push_provenance
        self._uploads = farm.upload_directory  # where images that users sent are
        self._repository: Repository | None = None

    def __call__(self, claim: Claim, report: Callable[[dict[str, object]], None]) -> Outcome:
        """See tasks.Converter. The image keeps the name of its wish, with the registry as it was written there."""
        if self._repository is None:
            self._repository = open_target(self._settings, farm_database_url=self._database_url)
        repository = self._repository
        layout = uploaded_layout(self._uploads, claim.digest)
        if layout is None:
            source = parse_source(claim.pinned)
        else:  # the text gets into the repository's records
            source = ImageSource(f"upload:{claim.digest}", OCI, path=layout)
        every = claim.terms.platforms == (ALL,)
        request = ConversionRequest(
            source=source,
            name=claim.name,
            platforms=() if every else tuple(map(Platform.parse, claim.terms.platforms)),
            every_platform=every,
            policy=claim.terms.policy,
            takes_foreign_layers=self._takes_foreign,
        )

        def tell(progress: Progress) -> None:
            report(asdict(progress))

        async def convert() -> ConversionResult:
            done = await convert_image(request, repository, tell, limits=self._limits)
            return await attest_result(repository.view(), source, done, self._attested)

        result = anyio.run(convert)
        return Outcome(
            changed=result.changed,
            public_path=result.public_path,
            flat_path=result.flat_path,
            revision=result.revision,
            details=result.as_json(),
        )
