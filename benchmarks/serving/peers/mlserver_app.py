"""MLServer: a custom runtime; pictures are base64 in tensors of BYTES, answers are JSON strings."""

import json

import picture_model
from mlserver import MLModel
from mlserver.codecs import Base64Codec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Classifier(MLModel):
    """Requests that wait arrive as one, which MLServer's adaptive batching has merged."""

    async def load(self) -> bool:
        self.model = picture_model.load()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        bodies = Base64Codec.decode_input(payload.inputs[0])
        answers = self.model.predict([self.model.decode(body) for body in bodies])
        output = StringCodec.encode_output("answers", [json.dumps(each) for each in answers])
        return InferenceResponse(model_name=self.name, outputs=[output])
