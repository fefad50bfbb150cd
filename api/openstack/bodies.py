"""What clients send: the objects of sections 4.4.2.2, 4.4.3.2 and 4.4.4.2.

Each key may be written in snake_case or camelCase, an explicit null is the same as an absent
key, and a key that is not documented is refused. Shape and types are checked here, values are not.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel, to_snake

from api.openstack import values
from bockd.blockstorage.contract import NewSnapshot, NewVolume
from bockd.blockstorage.rules import exact_size
from bockd.errors import InvalidRequestError
from bockd.model import BLOCK_SIZE, MAX_VOLUME_BYTES, MIN_VOLUME_BYTES

Id = Annotated[
    int | str,
    WithJsonSchema(
        {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": "^[0-9]{1,19}$"}]}
    ),
]
Size = Annotated[
    int | str,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": 16384},
                {"type": "string", "pattern": "^[1-9][0-9]{0,3}$"},
            ]
        }
    ),
]
Flag = Annotated[
    bool | str,
    WithJsonSchema(
        {"anyOf": [{"type": "boolean"}, {"type": "string", "enum": list(values.FLAGS)}]}
    ),
]


SizeBytes = Annotated[
    int,
    WithJsonSchema(
        {
            "type": "integer",
            "minimum": MIN_VOLUME_BYTES,
            "maximum": MAX_VOLUME_BYTES,
            "multipleOf": BLOCK_SIZE,
        }
    ),
]
Text = Annotated[str, WithJsonSchema({"type": "string", "maxLength": 255})]


class Body(BaseModel):
    """A JSON object of the dialect."""

    model_config = ConfigDict(strict=True, extra="forbid", populate_by_name=False)

    @model_validator(mode="before")
    @classmethod
    def read_spellings(cls, given: Any) -> Any:
        """Drop nulls, and give each key the spelling of the documents."""
        if not isinstance(given, dict):
            return given
        kept: dict[str, Any] = {}
        for key, value in given.items():
            if value is None:
                continue
            name = cls._documented_key(key)
            if kept.setdefault(name, value) != value:
                raise ValueError(f"{name} is given twice, with different values")
        return kept

    @classmethod
    def _documented_key(cls, key: str) -> str:
        for name, field in cls.model_fields.items():
            if key in (name, to_camel(name), to_snake(name), field.alias):
                return field.alias or name
        return key


class ExactSize(Body):
    """Our own key in a request: `"bockd": {"size_bytes": 1048576}`."""

    size_bytes: SizeBytes | None = Field(None, description="Exactly; `size` is this rounded up")


class VolumeBody(Body):
    """Section 4.4.2.2."""

    size: Size | None = Field(None, description="GiB; required unless made from something")
    display_name: Text | None = None
    display_description: Text | None = None
    snapshot_id: Id | None = Field(None, description="A snapshot to copy")
    image_ref: str | None = Field(None, alias="imageRef", description="An image to copy")
    metadata: dict[str, str | None] | None = None
    availability_zone: Text | None = None
    volume_type: str | int | None = Field(None, description="Ignored, as specified")
    bockd: ExactSize | None = Field(None, description="What only bockd understands")

    def wanted(self) -> NewVolume:
        """What the service is asked for. Raises InvalidRequestError, or NotFoundError for a
        snapshot that cannot be."""
        given = self.metadata or {}
        return NewVolume(
            size_gib=None if self.size is None else values.integer("size", self.size),
            display_name=self.display_name,
            display_description=self.display_description,
            snapshot_id=None if self.snapshot_id is None else values.snapshot_id(self.snapshot_id),
            image_id=None if self.image_ref is None else values.image_id(self.image_ref),
            metadata={key: value for key, value in given.items() if value is not None},
            availability_zone=self.availability_zone,
            size_bytes=None if self.bockd is None else self.bockd.size_bytes,
        )


class CreateVolume(Body):
    """`{"volume": {...}}`."""

    volume: VolumeBody


class ExtendBody(Body):
    """What `os-extend` asks for: GiB as Cinder says it, bytes as only bockd understands."""

    new_size: Size | None = Field(None, description="GiB; the new size, not the difference")
    bockd: ExactSize | None = None

    def size_bytes(self) -> int:
        """The new size. Raises InvalidRequestError."""
        new_size = None if self.new_size is None else values.integer("new_size", self.new_size)
        wanted = exact_size(new_size, None if self.bockd is None else self.bockd.size_bytes)
        if wanted is None:
            raise InvalidRequestError("os-extend.new_size is missing")
        return wanted


class RevertBody(Body):
    """What `revert` asks for."""

    snapshot_id: Id


class ReopenBody(Body):
    """`bockd-reopen` needs nothing more."""


class VolumeAction(Body):
    """One of Cinder's actions on a volume, or of ours: an object with one key, the action's name.
    Null stands for an action that needs nothing more."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    extend: ExtendBody | None = Field(None, alias="os-extend")
    revert: RevertBody | None = None
    reopen: ReopenBody | None = Field(None, alias="bockd-reopen")

    @model_validator(mode="before")
    @classmethod
    def read_spellings(cls, given: Any) -> Any:
        """Exactly one action, whose name has one spelling."""
        if not isinstance(given, dict):
            return given
        if len(given) != 1:
            raise ValueError("name one action")
        ((name, wanted),) = given.items()
        return {name: {} if wanted is None else wanted}


class SnapshotBody(Body):
    """Section 4.4.4.2."""

    volume_id: Id
    display_name: Text | None = None
    display_description: Text | None = None
    force: Flag | None = Field(None, description="Of an attached volume too; false unless given")

    def wanted(self) -> NewSnapshot:
        """What the service is asked for. Raises InvalidRequestError, or NotFoundError for a volume
        that cannot be."""
        return NewSnapshot(
            force=self.force is not None and values.flag("force", self.force),
            volume_id=values.volume_id(self.volume_id),
            display_name=self.display_name,
            display_description=self.display_description,
        )


class CreateSnapshot(Body):
    """`{"snapshot": {...}}`."""

    snapshot: SnapshotBody


class AttachmentBody(Body):
    """Section 4.4.3.2. The volume may stand in the path instead (section 4.1)."""

    volume_id: Id | None = Field(None, alias="volumeId")
    device: str | None = Field(None, description="As /dev/vdf; the next free one unless given")


class AttachVolume(Body):
    """`{"volumeAttachment": {...}}`."""

    volume_attachment: AttachmentBody = Field(alias="volumeAttachment")
