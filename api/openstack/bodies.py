"""What clients send: the objects of sections 4.4.2.2, 4.4.3.2 and 4.4.4.2.

Each key may be written in snake_case or camelCase, and an explicit null is the same as an absent
key. A key that nobody here knows is ignored, as the servers of 2012 did: clients send what later
APIs know, and what they have just read. The exceptions are `ASKS_FOR_MORE`, an action, and what is
ours. Shape and types are checked here, values are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel, to_snake

from api.openstack import values
from bockd.blockstorage.contract import Edit, NewSnapshot, NewVolume
from bockd.blockstorage.rules import exact_size
from bockd.errors import InvalidRequestError
from bockd.model import BLOCK_SIZE, MAX_VOLUME_BYTES, MIN_VOLUME_BYTES, CacheMode

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


OptionalId = Annotated[
    int | str,
    WithJsonSchema(
        {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": "^[0-9]{0,19}$"}]}
    ),
]
"""Where "" is the same as null: so our own replies say that there is none (section 4.4.2.1)."""

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
Metadata = dict[str, str | None]


ANY_DEVICE = ("", "auto")
"""What clients write for the next free device besides null; libcloud sends "auto"."""

ASKS_FOR_MORE = {
    "source_replica": "volumes have no replicas; give the volume's id as source_volid",
    "backup_id": "there are no backups",
}
"""Keys of later APIs that name what a volume is to hold, and what to do. If they were ignored, the
volume would hold zeros instead."""


class Body(BaseModel):
    """A JSON object of the dialect."""

    model_config = ConfigDict(strict=True, extra="ignore", populate_by_name=False)

    later_names: ClassVar[Mapping[str, str]] = {}
    """What later APIs call a key, where the key itself is not given."""

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
        for later, name in cls.later_names.items():
            if later in kept:
                kept.setdefault(name, kept[later])
        return kept

    @classmethod
    def _documented_key(cls, key: str) -> str:
        for name, field in cls.model_fields.items():
            if key in (name, to_camel(name), to_snake(name), field.alias):
                return field.alias or name
        return key


class Described(Body):
    """What has a name and a description."""

    later_names = {"name": "display_name", "description": "display_description"}

    display_name: Text | None = None
    display_description: Text | None = None


class ExactSize(Body):
    """Our own key in a request: `"bockd": {"size_bytes": 1048576}`. Unknown keys in it are refused:
    if a size were overlooked, the volume would have another."""

    model_config = ConfigDict(extra="forbid")

    size_bytes: SizeBytes | None = Field(None, description="Exactly; `size` is this rounded up")


class NewSize(ExactSize):
    """The same, with the size of the image that will be written to the volume."""

    content_bytes: int | None = Field(
        None, description="Of which `size_bytes` is whole blocks; what an export gives"
    )


class VolumeBody(Described):
    """Section 4.4.2.2."""

    size: Size | None = Field(None, description="GiB; required unless made from something")
    snapshot_id: OptionalId | None = Field(None, description="A snapshot to copy")
    image_ref: str | None = Field(None, alias="imageRef", description="An image to copy")
    source_volid: OptionalId | None = Field(None, description="A volume to copy as it is now")
    metadata: Metadata | None = None
    availability_zone: Text | None = None
    volume_type: str | int | None = Field(None, description="Ignored, as specified")
    bockd: NewSize | None = Field(None, description="What only bockd understands")

    @model_validator(mode="before")
    @classmethod
    def refuse_other_content(cls, given: Any) -> Any:
        """Refuse `ASKS_FOR_MORE`, unless they are empty."""
        if isinstance(given, dict):
            for key, instead in ASKS_FOR_MORE.items():
                if given.get(key):
                    raise ValueError(f"{key} is not supported: {instead}")
        return given

    def wanted(self) -> NewVolume:
        """Return the volume that the service is asked for. Raises InvalidRequestError, or
        NotFoundError for a snapshot id that cannot be one."""
        source, image, volume = self.snapshot_id, self.image_ref, self.source_volid
        return NewVolume(
            size_gib=None if self.size is None else values.integer("size", self.size),
            display_name=self.display_name,
            display_description=self.display_description,
            snapshot_id=None if source in (None, "") else values.snapshot_id(source),
            image_id=None if image in (None, "") else values.image_id(image),
            source_volume=None if volume in (None, "") else values.volume_id(volume),
            metadata=without_nulls(self.metadata or {}),
            availability_zone=self.availability_zone,
            size_bytes=None if self.bockd is None else self.bockd.size_bytes,
            content_bytes=None if self.bockd is None else self.bockd.content_bytes,
        )


def without_nulls(metadata: Metadata) -> dict[str, str]:
    """Return metadata without the keys whose value is null: a null is the same as an absent key
    here too."""
    return {key: value for key, value in metadata.items() if value is not None}


class CreateVolume(Body):
    """`{"volume": {...}}`."""

    volume: VolumeBody


class EditBody(Described):
    """The new name, description and metadata of a volume. "" removes a name."""

    metadata: Metadata | None = Field(None, description="All that it has then")

    def wanted(self) -> Edit:
        """Return the edit that the service is asked for."""
        metadata = None if self.metadata is None else without_nulls(self.metadata)
        return Edit(self.display_name, self.display_description, metadata)


class EditVolume(Body):
    """`{"volume": {...}}`, in the form of Cinder's update."""

    volume: EditBody


class EditSnapshot(Body):
    """`{"snapshot": {...}}`, in the form of Cinder's update."""

    snapshot: Described

    def wanted(self) -> Edit:
        """Return the edit that the service is asked for."""
        return Edit(self.snapshot.display_name, self.snapshot.display_description)


class MetadataBody(Body):
    """`{"metadata": {...}}`."""

    metadata: Metadata


class OneItemBody(Body):
    """`{"meta": {key: value}}`, with the key of the path."""

    meta: dict[str, str]


class ExtendBody(Body):
    """What `os-extend` asks for: GiB in Cinder's key, bytes in ours, which only bockd
    understands."""

    new_size: Size | None = Field(None, description="GiB; the new size, not the difference")
    bockd: ExactSize | None = None

    def size_bytes(self) -> int:
        """Return the new size in bytes. Raises InvalidRequestError."""
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


class SetCacheBody(Body):
    """What `bockd-set-cache` asks for."""

    mode: CacheMode = Field(strict=False)  # else no text is one


class DiscardCacheBody(Body):
    """`bockd-discard-cache` needs nothing more."""


class HoldBody(Body):
    """What `bockd-hold` asks for."""

    reason: Text = Field(description="Who holds it, and what for")
    instead_of: Text | None = Field(None, description="The reason that it replaces")


class ReleaseBody(Body):
    """What `bockd-release` may ask for."""

    reason: Text | None = Field(
        None, description="The reason that it is held for: it is not released from another hold"
    )


class Action(Body):
    """An object with one key, the action's name. Null stands for an action that needs nothing
    more."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"minProperties": 1, "maxProperties": 1}
    )

    @model_validator(mode="before")
    @classmethod
    def read_spellings(cls, given: Any) -> Any:
        """Require exactly one action, whose name has one spelling."""
        if not isinstance(given, dict):
            return given
        if len(given) != 1:
            raise ValueError("name one action")
        ((name, wanted),) = given.items()
        return {name: {} if wanted is None else wanted}


class VolumeAction(Action):
    """One of Cinder's actions on a volume, or one of our own."""

    extend: ExtendBody | None = Field(None, alias="os-extend")
    revert: RevertBody | None = None
    reopen: ReopenBody | None = Field(None, alias="bockd-reopen")
    set_cache: SetCacheBody | None = Field(None, alias="bockd-set-cache")
    discard_cache: DiscardCacheBody | None = Field(None, alias="bockd-discard-cache")
    hold: HoldBody | None = Field(None, alias="bockd-hold")
    release: ReleaseBody | None = Field(None, alias="bockd-release")


class RestoreBody(Body):
    """`bockd-restore` needs nothing more."""


class TrashAction(Action):
    """What can be done to something in the trash."""

    restore: RestoreBody | None = Field(alias="bockd-restore")


class SnapshotPurpose(Body):
    """Our own key of a new snapshot."""

    model_config = ConfigDict(extra="forbid")

    consumes_quota: bool | None = Field(
        None, description="False: it is deleted soon by who copies the volume; a few for each"
    )


class SnapshotBody(Described):
    """Section 4.4.4.2."""

    volume_id: Id
    force: Flag | None = Field(None, description="Of an attached volume too; false unless given")
    bockd: SnapshotPurpose | None = Field(None, description="What only bockd understands")

    def wanted(self) -> NewSnapshot:
        """Return the snapshot that the service is asked for. Raises InvalidRequestError, or
        NotFoundError for a volume id that cannot be one."""
        return NewSnapshot(
            force=self.force is not None and values.flag("force", self.force),
            volume_id=values.volume_id(self.volume_id),
            display_name=self.display_name,
            display_description=self.display_description,
            consumes_quota=self.bockd is None or self.bockd.consumes_quota is not False,
        )


class CreateSnapshot(Body):
    """`{"snapshot": {...}}`."""

    snapshot: SnapshotBody


class AttachmentBody(Body):
    """Section 4.4.3.2. The volume may stand in the path instead (section 4.1)."""

    volume_id: Id | None = Field(None, alias="volumeId")
    device: str | None = Field(
        None, description='As /dev/vdf; null, "" and "auto" are the next free one'
    )

    def wanted_device(self) -> str | None:
        """Return the device by name; None for the next free one."""
        return None if self.device in ANY_DEVICE else self.device


class AttachVolume(Body):
    """`{"volumeAttachment": {...}}`."""

    volume_attachment: AttachmentBody = Field(alias="volumeAttachment")
