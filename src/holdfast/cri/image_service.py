"""runtime.v1.ImageService: a few lines per call; the rules are in `images`."""

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from holdfast.cri import convert
from holdfast.cri.streams import parts
from holdfast.images.service import Images
from holdfast.model.errors import InvalidArgument, NotFound
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.proto.runtime_v1_pb2_grpc import ImageServiceServicer


class ImageService(ImageServiceServicer):
    """Images over the CRI."""

    def __init__(self, images: Images) -> None:
        self._images = images

    async def ListImages(self, request: pb.ListImagesRequest, context: Any) -> bytes:
        """A ListImagesResponse, already serialized."""
        return b"".join(self._entries(request.filter))

    async def StreamImages(self, request: pb.StreamImagesRequest, context: Any) -> AsyncIterator[bytes]:
        """StreamImagesResponses, already serialized."""
        for part in parts(self._entries(request.filter)):
            yield part

    def _entries(self, wanted: pb.ImageFilter) -> list[bytes]:
        name = wanted.image.image
        try:
            found = [self._images.find(name)] if name else list(self._images.all())
        except NotFound:
            return []
        return [pb.ListImagesResponse(images=[convert.image_item(image)]).SerializeToString() for image in found]

    async def ImageStatus(self, request: pb.ImageStatusRequest, context: Any) -> pb.ImageStatusResponse:
        """An image that is not there is an empty answer, not an error."""
        try:
            image = self._images.find(_name(request.image))
        except NotFound:
            return pb.ImageStatusResponse()
        info = convert.image_info(image) if request.verbose else {}
        return pb.ImageStatusResponse(image=convert.image_item(image), info=info)

    async def PullImage(self, request: pb.PullImageRequest, context: Any) -> pb.PullImageResponse:
        auth = request.auth if request.HasField("auth") else None
        image = await self._images.pull(_name(request.image), auth)
        return pb.PullImageResponse(image_ref=image.id)

    async def RemoveImage(self, request: pb.RemoveImageRequest, context: Any) -> pb.RemoveImageResponse:
        """An image that is not there has been removed."""
        with contextlib.suppress(NotFound):
            await self._images.remove(_name(request.image))
        return pb.RemoveImageResponse()

    async def ImageFsInfo(self, request: pb.ImageFsInfoRequest, context: Any) -> pb.ImageFsInfoResponse:
        usage = await self._images.usage()
        filesystem = pb.FilesystemUsage(
            timestamp=time.time_ns(),
            fs_id=pb.FilesystemIdentifier(mountpoint=usage.mountpoint),
            used_bytes=pb.UInt64Value(value=usage.bytes),
            inodes_used=pb.UInt64Value(value=usage.inodes),
        )
        return pb.ImageFsInfoResponse(image_filesystems=[filesystem], container_filesystems=[filesystem])


def _name(image: pb.ImageSpec) -> str:
    if not image.image:
        raise InvalidArgument("image.image: must not be empty")
    return image.image
