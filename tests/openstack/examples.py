"""The specification's curl examples, as it prints them, one for each operation.

The document ends the lines of a quoted body in backslashes (4.4.4.2), leaves the media type of a
body out (4.4.3.2), and misspells a placeholder (4.4.4.2); so do these. One thing is mended: the
example of 4.4.3.3 lacks a backslash between its two lines, without which it is two commands.
"""

from __future__ import annotations

VERSION_INFO = r"""
    curl -i -H "X-Auth-Token: {Auth_Token}" {BaseUri}/v1.1/
"""

VERSION_LIST = r"""
    curl -i -H "X-Auth-Token: {Auth_Token}" {BaseUri}/
"""

LIST_VOLUMES = r"""
    curl -i -H "X-Auth-Token: {Auth_Token}" \
               {BaseUri}/v1.1/{tenant_id}/os-volumes
"""

CREATE_VOLUME = r"""
    curl -i -H "X-Auth-Token: {Auth_Token}" \
       -H "Content-Type: application/json" \
       {BaseUri}/v1.1/{tenant_id}/os-volumes \
       -X POST -d '{"volume": {"size": 1, "display_name": "Test Volume","display_description": "Test Volume desc"}}'
"""  # noqa: E501 - as printed

CREATE_VOLUME_FROM_SNAPSHOT = r"""
    curl -i -H "X-Auth-Token: {Auth_Token}" \
       -H "Content-Type: application/json" \
       {BaseUri}/v1.1/{tenant_id}/os-volumes \
       -X POST -d '{"volume": {"size": 1, "snapshot_id": 31, "display_name": "Test Volume from snapshot 31","display_description": "Test Volume desc"}}'
"""  # noqa: E501 - as printed

CREATE_VOLUME_WITH_METADATA = r"""
    curl -i -H "X-Auth-Token: {Auth_Token}" \
       -H "Content-Type: application/json" \
       {BaseUri}/v1.1/{tenant_id}/os-volumes \
       -X POST -d '{"volume": {"size": "1", "display_name": "Test Volume","display_description": "Test Volume desc", "metadata":{"VolMeta" : "VolMetaValue"}}}'
"""  # noqa: E501 - as printed

SHOW_VOLUME = r"""
    curl -i -H "X-Auth-Token: {Auth_Token}" \
            {BaseUri}/v1.1/{tenant_id}/os-volumes/{volume_id}
"""

DELETE_VOLUME = r"""
    curl -i -H "X-Auth-Token: {Auth_Token}" \
            {BaseUri}/v1.1/{tenant_id}/os-volumes/{volume_id} -X DELETE
"""

LIST_ATTACHMENTS = r"""
    curl -i -H "X-Auth-Token: {Auth_Token}" \
            {BaseUri}/v1.1/{tenant_id}/servers/{server_id}/os-volume_attachments
"""

ATTACH_VOLUME = r"""
    curl -i -H "X-Auth-Token: {Auth_Token}" \
            {BaseUri}/v1.1/{tenant_id}/servers/{server_id}/os-volume_attachments \
            -X POST -d '{"volumeAttachment": {"volumeId": "5825","device": "/dev/sdf"}}'
"""

DETACH_VOLUME = r"""
    curl -i -H "X-Auth-Token: {Auth_Token}" \
            {BaseUri}/v1.1/{tenant_id}/servers/{server_id}/os-volume_attachments/{volume_id} \
            -X DELETE
"""

LIST_SNAPSHOTS = r"""
    curl -i -H "X-Auth-Token: <Auth_Token>" \
                {BaseUri}/v1.1/{tenant_id}/os-snapshots
"""

CREATE_SNAPSHOT = r"""
    curl -i -H "X-Auth-Token: <Auth_Token>" \
                {BaseUri}/v1.1/{tennant_id}/os-snapshots \
            -X POST \
            -d '{"snapshot": {"force": false, \
                                "display_name": "TestSnapshot2", \
                                "display_description": "Test description", \
                                "volume_id": 18818}}' \
            -H "Content-Type: application/json; charset=UTF-8"
"""

SHOW_SNAPSHOT = r"""
    curl -i -H "X-Auth-Token: <Auth_Token>" \
                {BaseUri}/v1.1/{tenant_id}/os-snapshots/{snapshot_id}
"""

DELETE_SNAPSHOT = r"""
    curl -i -H "X-Auth-Token: <Auth_Token>" -X DELETE \
                {BaseUri}/v1.1/{tenant_id}/os-snapshots/{snapshot_id}
"""
