"""An audio or video file to its samples, as they are: native rate, all channels, float32; and what was odd about it.

The only importer of PyAV (libav). Files are hostile until decoded: only containers that hold their own media are
opened (a playlist could make libav fetch other files or addresses), bytes are read through a plain file object (so no
name is taken for a protocol), and duration, channels and memory have bounds. Axes: T samples, C channels.
"""

import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np

from pipelines.objects import object_address, opened_header, opened_object

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

Reason = Literal["empty", "unreadable", "no_audio", "too_long", "too_many_channels"]

# Demuxers of files that carry their media themselves. Left out: playlists (hls, dash, concat), devices, raw formats
# without a header, still images, text.
_CONTAINERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dsf,dts,eac3,flac,flv,iff,loas,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpc,"
    "mpc8,mpeg,mpegts,mxf,nistsphere,nut,ogg,qcp,rm,shn,sox,tak,truehd,tta,voc,w64,wav,wv,wsaud,xwma"
)
# Full scale of libav's sample formats; unsigned bytes are centred at 128.
_FULL_SCALE = {"u8": 2.0**7, "s16": 2.0**15, "s32": 2.0**31, "s64": 2.0**63, "flt": 1.0, "dbl": 1.0}
_RIFF_UNKNOWN_LENGTH = 0xFFFFFFFF
_HEADER_BYTES = 1 << 16
_LARGEST_JITTER_S = 0.05  # containers round the clocks of their packets


class UndecodableError(ValueError):
    """A file without usable audio. `reason` is a word for counting, the message names the cause."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class DecodeLimits:
    """What a single file may ask for. `most_bytes` bounds the decoded float32 samples of all channels."""

    longest_s: float = 4 * 3600.0
    most_channels: int = 16
    most_bytes: int = 4 << 30
    lowest_rate_hz: int = 4_000
    highest_rate_hz: int = 768_000

    def __post_init__(self) -> None:
        if min(self.longest_s, self.most_channels, self.most_bytes, self.lowest_rate_hz) <= 0:
            raise ValueError(f"decode limits must be positive, got {self}")
        if self.highest_rate_hz < self.lowest_rate_hz:
            raise ValueError(f"decode limits: need lowest_rate_hz <= highest_rate_hz, got {self}")


DEFAULT_LIMITS = DecodeLimits()


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a file's header says. `duration_s` is None where it says nothing; headers may lie."""

    duration_s: float | None
    rate_hz: int
    channels: int
    codec: str


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The samples of a file: `wave` (T, C) float32, finite; full scale is 1, floating-point files may exceed it.

    `warnings` are sentences on what was repaired or is missing; empty for a sound file.
    """

    wave: np.ndarray
    rate_hz: int
    channels: int
    codec: str
    warnings: tuple[str, ...] = ()


def probe(source: str | Path | BinaryIO, *, limits: DecodeLimits = DEFAULT_LIMITS) -> Probe:
    """Read the header of `source`: a path, an address in an object store, or an open binary file that can seek.

    Raises:
        UndecodableError: there is no audio in it, or it asks for more than `limits`.
    """
    with _opened(source, header_only=True) as (_, container, stream):
        _check_header(stream, limits)
        return Probe(
            duration_s=_declared_duration_s(container, stream),
            rate_hz=stream.codec_context.rate,
            channels=stream.codec_context.channels,
            codec=stream.codec_context.codec.canonical_name,
        )


def decode(source: str | Path | BinaryIO, *, limits: DecodeLimits = DEFAULT_LIMITS) -> Decoded:
    """Read all samples of the first or best audio stream of `source`, at its own rate and with all its channels.

    What is there of a damaged file is returned with a warning; encoder delay is trimmed as the container says.

    Raises:
        UndecodableError: there is no audio in it, or more than `limits` allow.
    """
    with _opened(source) as (file, container, stream):
        _check_header(stream, limits)
        rate_hz, channels = stream.codec_context.rate, stream.codec_context.channels
        longest = min(limits.longest_s * rate_hz, limits.most_bytes / (4 * channels))
        declared_s = _declared_duration_s(container, stream)
        # A header may promise anything, so only what was decoded is trusted; a sound one saves the work.
        warnings = _header_warnings(file)
        pieces: list[np.ndarray] = []
        total = damaged = good = 0
        origin_s: float | None = None
        missing_s = 0.0
        for frame in _frames(container, stream):
            if frame is None:
                damaged += 1
                continue
            if frame.sample_rate != rate_hz or frame.layout.nb_channels != channels:
                warnings.append(
                    f"the format changes at {total / rate_hz:.2f} s to {frame.sample_rate} Hz x "
                    f"{frame.layout.nb_channels}: the rest was left out"
                )
                break
            good += 1
            if frame.time is not None:
                # A decoder may drop a damaged frame without a word; the clock of the next one tells.
                origin_s = frame.time if origin_s is None else origin_s
                missing_s = max(missing_s, frame.time - origin_s - total / rate_hz)
            pieces.append(_samples(frame))
            total += len(pieces[-1])
            if total > longest:
                raise UndecodableError("too_long", f"more than {longest / rate_hz:.0f} s of {channels} channels")
        codec = stream.codec_context.codec.canonical_name
    if damaged > good:
        raise UndecodableError("unreadable", f"{damaged} of {damaged + good} packets are damaged")
    if not total:
        raise UndecodableError("empty", "it holds no samples")
    if damaged:
        warnings.append(f"{damaged} of {damaged + good} packets are damaged and were left out")
    if missing_s > _LARGEST_JITTER_S:
        warnings.append(f"{missing_s:.2f} s are missing between its frames: what follows lies that much too early")
    if declared_s is not None and total / rate_hz < 0.9 * declared_s - 0.5:
        warnings.append(f"the header claims {declared_s:.1f} s, the file holds {total / rate_hz:.1f} s")
    wave = np.concatenate(pieces)
    return Decoded(
        wave=wave, rate_hz=rate_hz, channels=channels, codec=codec, warnings=(*warnings, *_repair_in_place(wave))
    )


@contextmanager
def _opened(
    source: str | Path | BinaryIO, *, header_only: bool = False
) -> Iterator[tuple[BinaryIO, "InputContainer", "AudioStream"]]:
    """`source` as (file, container, audio stream), closed afterwards; whatever libav refuses is an UndecodableError."""
    import av

    with _binary_file(source, header_only=header_only) as file:
        if not file.read(1):
            raise UndecodableError("empty", "the file has 0 bytes")
        file.seek(0)
        try:
            container = av.open(file, mode="r", options={"format_whitelist": _CONTAINERS}, metadata_errors="replace")
        except (av.FFmpegError, ValueError) as error:
            raise UndecodableError("unreadable", "libav knows no audio or video format in it") from error
        except OSError as error:
            if not _leads_nowhere(error):
                raise
            raise UndecodableError("unreadable", "its header points to places outside of the file") from error
        with container:
            stream = container.streams.best("audio")
            if stream is None:
                raise UndecodableError("no_audio", f"a {container.format.name} file without an audio stream")
            if stream.codec_context is None:
                raise UndecodableError("unreadable", "no decoder for its audio codec")
            assert isinstance(stream, av.AudioStream)  # what best("audio") is, and its type does not say
            # One core per actor; libav's threads would change neither result nor total work.
            stream.codec_context.thread_count = 1
            yield file, container, stream


@contextmanager
def _binary_file(source: str | Path | BinaryIO, *, header_only: bool) -> Iterator[BinaryIO]:
    if not isinstance(source, (str, Path)):
        source.seek(0)
        yield source
        return
    if isinstance(source, str) and object_address(source) == source:
        with ExitStack() as stack:
            try:
                file = stack.enter_context(opened_header(source) if header_only else opened_object(source))
            except (FileNotFoundError, PermissionError) as error:
                raise UndecodableError("unreadable", str(error) or type(error).__name__) from error
            yield file
        return
    try:
        # Looked at before opening: a named pipe would block, a device would never end.
        if not stat.S_ISREG(os.stat(source).st_mode):  # noqa: PTH116 (a str path may hold bytes that Path would too)
            raise UndecodableError("unreadable", "not a regular file")
        file = open(source, "rb")  # noqa: PTH123, SIM115
    except OSError as error:
        raise UndecodableError("unreadable", error.strerror or "cannot be opened") from error
    with file:
        yield file


def _check_header(stream: "AudioStream", limits: DecodeLimits) -> None:
    rate_hz, channels = stream.codec_context.rate, stream.codec_context.channels
    if channels < 1 or not limits.lowest_rate_hz <= rate_hz <= limits.highest_rate_hz:
        raise UndecodableError("unreadable", f"its header names {rate_hz} Hz and {channels} channels")
    if channels > limits.most_channels:
        raise UndecodableError("too_many_channels", f"{channels} channels, the limit is {limits.most_channels}")


def _declared_duration_s(container: "InputContainer", stream: "AudioStream") -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration is not None else None


def _frames(container: "InputContainer", stream: "AudioStream") -> Iterator["AudioFrame | None"]:
    """Decoded frames in order; None for each packet that cannot be decoded."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            yield None  # the container itself breaks off here
            return
        except OSError as error:
            if not _leads_nowhere(error):
                raise
            yield None
            return
        except IndexError:
            yield None  # a damaged file that turns up with a stream it did not have at first
            return
        if packet is None:
            return
        try:
            yield from packet.decode()  # type: ignore[misc]
        except av.FFmpegError:
            yield None


def _leads_nowhere(error: OSError) -> bool:
    """Whether a damaged header sent libav to before the file's beginning; anything else is the disk's own."""
    return error.errno == errno.EINVAL


def _samples(frame: "AudioFrame") -> np.ndarray:
    """(samples, C) float32 of one frame, integers scaled to [-1, 1)."""
    name = frame.format.name.removesuffix("p")
    array = frame.to_ndarray()
    array = array.T if frame.format.is_planar else array.reshape(-1, frame.layout.nb_channels)
    if name == "u8":
        return (array.astype(np.float32) - 128.0) / np.float32(_FULL_SCALE[name])
    if name in ("flt", "dbl"):
        return array.astype(np.float32)
    if name == "s16":
        return array.astype(np.float32) / np.float32(_FULL_SCALE[name])
    return (array.astype(np.float64) / _FULL_SCALE[name]).astype(np.float32)


def _repair_in_place(wave: np.ndarray) -> list[str]:
    """Set samples that are no numbers to zero; a sentence for each thing found."""
    found = []
    peak = _peak(wave)
    if not np.isfinite(peak):
        broken = ~np.isfinite(wave)
        wave[broken] = 0.0
        found.append(f"{int(broken.sum())} samples were NaN or infinite and were set to zero")
        peak = _peak(wave)
    if peak > 1.0:
        found.append(f"samples reach {peak:.2f} times full scale")
    return found


def _peak(wave: np.ndarray) -> float:
    """The largest absolute value, without a copy; NaN where there is one."""
    return float(np.maximum(wave.max(initial=0.0), -wave.min(initial=0.0)))


def _header_warnings(file: BinaryIO) -> list[str]:
    """Lengths in a RIFF header that do not fit the file: libav corrects them silently."""
    position = file.tell()
    file.seek(0, os.SEEK_END)
    size = file.tell()
    file.seek(0)
    head = file.read(_HEADER_BYTES)
    file.seek(position)
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return []
    at = 12
    while at + 8 <= len(head):
        name, length = head[at : at + 4], struct.unpack_from("<I", head, at + 4)[0]
        if name == b"data":
            return _data_chunk_warnings(length, size - at - 8)
        at += 8 + length + length % 2
    return []


def _data_chunk_warnings(claimed: int, present: int) -> list[str]:
    if claimed in (0, _RIFF_UNKNOWN_LENGTH) and present:
        return ["the WAV header gives no length (a recorder that crashed leaves it so): read to the end of the file"]
    if claimed > present:
        return [f"the WAV header claims {claimed} bytes of audio, the file holds {present}: it is cut off"]
    return []
