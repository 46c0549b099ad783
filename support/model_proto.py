"""The parts of the protocol buffer of a SentencePiece model that this project uses.

The sentencepiece package contains the full description, but in a form that only one version of
protobuf can load, often not TensorFlow's. The field numbers are those of sentencepiece_model.proto.
Other fields are preserved.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

UNKNOWN, CONTROL, BYTE = 2, 3, 6  # types of pieces
Field = descriptor_pb2.FieldDescriptorProto

MESSAGES = {  # name -> fields: name, number, type, default
    "SentencePiece": [
        ("piece", 1, Field.TYPE_STRING, ""), ("score", 2, Field.TYPE_FLOAT, "0"),
        ("type", 3, Field.TYPE_INT32, "1")],
    "TrainerSpec": [("byte_fallback", 35, Field.TYPE_BOOL, "false")],
    "NormalizerSpec": [
        ("name", 1, Field.TYPE_STRING, ""),
        ("remove_extra_whitespaces", 4, Field.TYPE_BOOL, "true")],
    "ModelProto": [
        ("pieces", 1, "SentencePiece", None), ("trainer_spec", 2, "TrainerSpec", None),
        ("normalizer_spec", 3, "NormalizerSpec", None)],
}


def _model_proto():
    file = descriptor_pb2.FileDescriptorProto(name="model.proto", package="model", syntax="proto2")
    for message, fields in MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, number, kind, default in fields:
            field = described.field.add(name=name, number=number, label=Field.LABEL_OPTIONAL)
            if isinstance(kind, str):
                field.type, field.type_name = Field.TYPE_MESSAGE, f".model.{kind}"
            else:
                field.type, field.default_value = kind, default
            if name == "pieces":
                field.label = Field.LABEL_REPEATED
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("model.ModelProto"))


ModelProto = _model_proto()
