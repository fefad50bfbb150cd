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
        )


class CreateVolume(Body):
    """`{"volume": {...}}`."""

    volume: VolumeBody


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
