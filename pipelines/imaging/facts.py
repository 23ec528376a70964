"""What is known of an image before it is decoded: kind of samples, colours, planes, scale and place. Value objects."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from pipelines.errors import UnreadableImageError
from pipelines.imaging.place import Affine

_TOLERANCE = 0.02


class Colours(StrEnum):
    """What the channels of an image mean."""

    GRAY = "gray"
    RGB = "rgb"
    PALETTE = "palette"
    CMYK = "cmyk"
    BANDS = "bands"


@dataclass(frozen=True, slots=True)
class Plane:
    """One plane of a stack. `z` and `t` are None where the file has no such axis; channels are not planes."""

    index: int = 0
    z: int | None = None
    t: int | None = None


@dataclass(frozen=True, slots=True)
class ImageScale:
    """How the level that is cut relates to the full image and to the world.

    Attributes:
        full_width: pixels of the full image, level 0.
        full_height: as `full_width`.
        mpp_x: micrometres per pixel of the full image; None where the file does not say.
        mpp_y: as `mpp_x`.
        transform: pixel corners of the full image to coordinates; None where it has no georeference.
        crs: the coordinates' system, such as `EPSG:32633`.
    """

    full_width: int
    full_height: int
    mpp_x: float | None = None
    mpp_y: float | None = None
    transform: Affine | None = None
    crs: str | None = None


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What the header says of one level.

    Attributes:
        width: pixels.
        height: pixels.
        channels: of a chip; the C axis of a stack and the samples of a pixel make one axis.
        dtype: name of the samples' numpy type.
        colours: what the channels mean.
        lossy: whether its pixels went through a lossy codec already.
        has_alpha: whether the last channel is an alpha channel.
        fill: value of the pixels of a tile that the file leaves out.
        nodata: value of pixels that hold nothing; None where there is none.
        scale: what gray values of fewer than 8 bits are multiplied by.
        is_inverted: whether the file has white as zero; pixels are turned so that black is.
        is_rgb: whether JPEG tiles hold red, green and blue, which most decoders cannot know.
        palette: red, green and blue of each index, 8 bits each; empty without a colour table.
        planes: what is cut, each with chips of its own.
        channel_names: as the file gives them; empty where it does not.
        scaling: level, scale and place.
        icc: the colour profile; empty without one.
        orientation: EXIF orientation of the file (1 to 8); chips keep the stored order of pixels.
        left_out: the other images of the file, by name and size; none of them is cut.
        notes: what the decoder has converted.
        level: number of the level.
    """

    width: int
    height: int
    channels: int
    dtype: str = "uint8"
    colours: Colours = Colours.GRAY
    lossy: bool = False
    has_alpha: bool = False
    fill: float = 0
    nodata: float | None = None
    scale: int = 1
    is_inverted: bool = False
    is_rgb: bool = False
    palette: bytes = b""
    planes: tuple[Plane, ...] = (Plane(),)
    channel_names: tuple[str, ...] = ()
    scaling: ImageScale = field(default_factory=lambda: ImageScale(1, 1))
    icc: bytes = b""
    orientation: int = 1
    left_out: str = ""
    notes: str = ""
    level: int = 0

    @property
    def converted(self) -> str:
        """How the chips' pixels differ from the stored ones; empty where they are the same."""
        scaled = f"gray scaled by {self.scale}" if self.scale > 1 else ""
        inverted = "white was zero, inverted" if self.is_inverted else ""
        return "; ".join(words for words in (scaled, inverted, self.notes) if words)

    @property
    def icc_sha256(self) -> str | None:
        """SHA-256 of the colour profile; None without one."""
        return hashlib.sha256(self.icc).hexdigest() if self.icc else None

    @property
    def factor_x(self) -> float:
        """Pixels of the full image to one of this level, across."""
        return self.scaling.full_width / self.width

    @property
    def factor_y(self) -> float:
        """Pixels of the full image to one of this level, down."""
        return self.scaling.full_height / self.height

    @property
    def transform(self) -> Affine | None:
        """Pixel corners of this level to coordinates."""
        full = self.scaling.transform
        return None if full is None else full.scaled(self.factor_x, self.factor_y)


def with_channels(facts: ImageFacts, channels: Sequence[int]) -> ImageFacts:
    """What is known of an image of which only these channels are taken, in this order; all of them where there are none.

    Raises:
        UnreadableImageError: it has no such channel.
    """
    if not channels:
        return facts
    if max(channels) >= facts.channels:
        raise UnreadableImageError(f"no channel {max(channels)}; this image has {facts.channels}")
    is_rgb = facts.colours is Colours.RGB and tuple(channels) == (0, 1, 2)
    colours = Colours.RGB if is_rgb else Colours.GRAY if len(channels) == 1 else Colours.BANDS
    names = tuple(facts.channel_names[k] for k in channels) if facts.channel_names else ()
    return replace(facts, channels=len(channels), colours=colours, has_alpha=False, channel_names=names)


def nearest_level(scaling: ImageScale, widths: Sequence[int], factor: float, mpp: float) -> int:
    """The number of the level with so many pixels of the full image to one, or micrometres per pixel, within 2 %.

    Args:
        scaling: of the full image.
        widths: of each level.
        factor: 0 where `mpp` is wanted.
        mpp: micrometres per pixel.

    Raises:
        UnreadableImageError: there is none, or the file does not say its scale.
    """
    if not factor and scaling.mpp_x is None:
        raise UnreadableImageError("the file does not say its micrometres per pixel; choose a level by its number or factor")
    factors = [widths[0] / width for width in widths]
    wanted = factor or mpp / (scaling.mpp_x or 1.0)
    best = min(range(len(factors)), key=lambda level: abs(math.log(factors[level] / wanted)))
    if abs(factors[best] / wanted - 1) > _TOLERANCE:
        known = ", ".join(f"{one:.6g}" for one in factors)
        raise UnreadableImageError(f"no level with factor {wanted:.6g}; it has {known}, and chips are not resampled")
    return best
