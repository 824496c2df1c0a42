"""FastAPI: files as ``UploadFile``, a plain ``def`` so that the work is done in its thread pool."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import picture_model
from fastapi import FastAPI, UploadFile


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the model before the first request."""
    picture_model.load()
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
def predict(files: list[UploadFile]) -> list[Any]:
    """An answer for each file."""
    model = picture_model.load()
    answers: list[Any] = model.predict([model.decode(each.file.read()) for each in files])
    return answers
