"""What several test files need to build: small, pure functions."""

from __future__ import annotations

from pathlib import Path


def build_refusal_classifier(folder: Path) -> Path:
    """A BERT folder of one layer whose head is set by hand: REJECTION if the input holds "cannot", OTHER if "maybe"."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cannot", "maybe", "it", "is", "red"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    config = BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=32, num_labels=3, id2label={0: "NORMAL", 1: "REJECTION", 2: "OTHER"},
        label2id={"NORMAL": 0, "REJECTION": 1, "OTHER": 2}, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        embeddings = model.bert.embeddings
        for norm in (module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)):
            norm.weight.fill_(1.0)
        embeddings.word_embeddings.weight[:, 0], embeddings.word_embeddings.weight[:, 1] = 1.0, -1.0
        for word, place in (("cannot", 2), ("maybe", 3)):
            embeddings.word_embeddings.weight[words.index(word), place] = 20.0
        layer = model.bert.encoder.layer[0]
        layer.attention.self.value.weight.copy_(torch.eye(8))
        layer.attention.output.dense.weight.copy_(torch.eye(8))  # the first token reads the mean of all
        model.bert.pooler.dense.weight.copy_(torch.eye(8))
        model.classifier.weight[1, 2] = model.classifier.weight[2, 3] = 50.0
        model.classifier.bias[0] = 1.0
    model.save_pretrained(folder)
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder
