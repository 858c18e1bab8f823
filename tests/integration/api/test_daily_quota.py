"""The daily quota of a key guards retries too: each writes two events per image to a log that is kept for ever."""

import aiohttp

from api.http.quotas import QUOTA
from infra.settings import Settings
from tests.support.api_server import serving_api
from tests.support.changelog import Changelog
from tests.support.examples import completed, created, failed, requested


async def test_retry_beyond_the_quota_is_refused(settings: Settings, request_id: str) -> None:
    async with (
        serving_api(settings.model_copy(update={"max_images_per_day": 10})) as (server, app),
        Changelog(settings) as changelog,
        aiohttp.ClientSession() as client,
    ):
        images = [requested(request_id, index) for index in range(4)]
        await changelog.fold(created(request_id, total=4), *(failed(image) for image in images), completed(request_id))
        with app[QUOTA].spend("", 7):
            pass
        async with client.post(server.make_url(f"/api/requests/{request_id}/retry")) as answer:
            assert answer.status == 429
            assert (await answer.json())["type"] == "urn:shrinkstream:problem:quota-exceeded"
            # One of ten images a day is missing.
            assert 8600 < int(answer.headers["Retry-After"]) <= 8640
