"""The contract of a stream's chips, derived from the contract of the stream: nobody writes it, and no device can send by it.

Its columns are those of a chip row, and those of the slide that the chip was cut of, named `slide_<column>`: the latter are
joined when a rule or a query reads them, and stored in no chip row. The prefix is the same for every stream, so that one policy
serves the chips of several.
"""

import msgspec

from schemas.contract import Column, ColumnType, Contract, PayloadSpec

CHIPS_SUFFIX = "_chips"
SLIDE_PREFIX = "slide_"
SLIDE_TAGS = f"{SLIDE_PREFIX}tags"
MAX_CHIP_BYTES = 256 * 1024 * 1024
_LONGEST_NAME = 63
_TEXT, _I32, _I64, _F32 = ColumnType.STRING, ColumnType.INT32, ColumnType.INT64, ColumnType.FLOAT32
_F64, _BYTES = ColumnType.FLOAT64, ColumnType.BINARY

# In the order in which a chip row has them, between its key and its tags. New ones are appended.
CHIP_COLUMNS: tuple[Column, ...] = (
    Column("source_sha256", _TEXT, description="SHA-256 of the slide's bytes"),
    Column("spec", _TEXT, description="Name of the chip spec"),
    Column("level", _I32, description="Level of the pyramid that was cut"),
    Column("chip_index", _I64, description="Number of the chip in its slide, row by row from the upper left"),
    Column("x", _I64, unit="px", description="Left edge on that level"),
    Column("y", _I64, unit="px", description="Upper edge on that level"),
    Column("width", _I32, unit="px", description="Width of the part inside the slide"),
    Column("height", _I32, unit="px", description="Height of the part inside the slide"),
    Column("background", _F32, description="Share of pixels that are near white or near black"),
    Column("media_type", _TEXT, description="How the chip's picture is encoded"),
    Column("zarr_path", _TEXT, description="Array of all chips of the slide; this chip is its item chip_index"),
    Column("left_out", _TEXT, description="The other images of the slide's file, which are not cut"),
    Column("plane", _I32, description="Number of the plane of a stack; 0 where there is one"),
    Column("z", _I32, description="Depth of the plane; null without such an axis"),
    Column("t", _I32, description="Time step of the plane; null without such an axis"),
    Column("valid", _F32, description="Share of pixels that hold something: no nodata, not masked, not transparent"),
    Column("mask", _BYTES, description="The file's own mask of the chip as gray PNG; null where it has none"),
    Column("level0_x", _I64, unit="px", description="Left edge in the full image"),
    Column("level0_y", _I64, unit="px", description="Upper edge in the full image"),
    Column("factor_x", _F64, description="Pixels of the full image to one of the chip, across"),
    Column("factor_y", _F64, description="Pixels of the full image to one of the chip, down"),
    Column("mpp_x", _F64, unit="um", description="Width of one of the chip's pixels; null where the file does not say"),
    Column("mpp_y", _F64, unit="um", description="Height of one of the chip's pixels; null where the file does not say"),
    Column("transform", ColumnType.LIST_FLOAT64, description="Six numbers a to f: x = a col + b row + c, y = d col + e row + f"),
    Column("crs", _TEXT, description="Coordinate system of transform and footprint, such as EPSG:32633"),
    Column("footprint", _BYTES, description="Outline of the part inside the slide, as WKB"),
    Column("orientation", _I32, description="EXIF orientation of the file; chips keep the stored order of pixels"),
    Column("icc_sha256", _TEXT, description="SHA-256 of the file's colour profile, which the array's attributes hold"),
    Column("converted", _TEXT, description="How pixels differ from the stored ones; empty where they do not"),
    Column("tissue", _F32, description="Share of pixels on the tissue's side of the slide's Otsu threshold; null without one"),
    Column("white", _F32, description="Share of pixels that are near white; null where samples have no white"),
    Column("black", _F32, description="Share of pixels that are near black; null likewise"),
    Column("entropy", _F32, unit="bit", description="Entropy of the gray values, 0 to 8"),
    Column("focus", _F32, description="Variance of the Laplacian of the gray values"),
    Column("spec_digest", _TEXT, description="What the spec said when the chip was cut; null of earlier releases"),
    Column("method", _TEXT, description="How the picture was made: exact, re-encoded, or passed as it was stored"),
)
CHIP_MEDIA_TYPES = ("image/jpeg", "image/png", "image/webp", "image/jp2", "image/tiff")


def chip_stream(stream: str) -> str:
    """The name of the stream of chips that are cut of a stream's payloads."""
    return f"{stream}{CHIPS_SUFFIX}"


def slide_stream(stream: str) -> str:
    """The name of the stream whose payloads chips of this stream are cut of; "" where the name is not that of chips."""
    return stream.removesuffix(CHIPS_SUFFIX) if stream.endswith(CHIPS_SUFFIX) else ""


def is_chip_contract(contract: Contract) -> bool:
    """Whether a contract is one that `chip_contract` gives, with or without columns that were added to it."""
    return bool(slide_stream(contract.name)) and contract.columns[: len(CHIP_COLUMNS)] == CHIP_COLUMNS


def slide_column(name: str) -> str:
    """The name of a slide's column on its chips; "" where that would be longer than a column's name may be."""
    joined = f"{SLIDE_PREFIX}{name}"
    return joined if len(joined) <= _LONGEST_NAME else ""


def chip_contract(slide: Contract) -> Contract:
    """The contract of the chips of a stream.

    Args:
        slide: the contract of the stream; its version is also the version of the result.
    """
    joined = [
        msgspec.structs.replace(column, name=name, required=False, redact=None, source_name="", unique=False)
        for column in slide.columns
        if (name := slide_column(column.name))
    ]
    return Contract(
        name=chip_stream(slide.name),
        version=slide.version,
        columns=(*CHIP_COLUMNS, *joined, Column(SLIDE_TAGS, ColumnType.LIST_STRING, description="Tags of the slide")),
        payload=PayloadSpec(CHIP_MEDIA_TYPES, MAX_CHIP_BYTES, required=False),
        retention_days=slide.retention_days,
        owner=slide.owner,
        description=f"Chips of stream {slide.name}; the core makes them, no device sends them",
    )
