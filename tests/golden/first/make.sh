#!/usr/bin/env bash
# How the files beside this one were made, once. They are not made again: what was written then stays readable.
set -euo pipefail
here=tests/golden/first
python3 - > $here/text.jsonl <<'PY'
import json, random
chance = random.Random(1)
for _ in range(240):
    a, b = chance.randrange(100), chance.randrange(100)
    sign, value = chance.choice([("plus", a + b), ("times", a * b), ("minus", a - b)])
    print(json.dumps({"question": f"What is {a} {sign} {b}?", "answer": f" It is {value}, naïvely told.\n"}))
PY
python -m launch.tokenize --output=$here/store --workers=0 --tokenizer.kind=bpe --tokenizer.vocab_size=300 \
  --columns.prompt='{question}' --columns.completion='{answer}' --splits.validation=0.2 $here/text.jsonl
small=(
  --config.data.source=tokens --config.data.tokens=$here/store --config.model.vocab_size=300 --config.model.d_model=16
  --config.model.n_layers=1 --config.model.n_heads=1 --config.seq_len=16 --config.batch_size=4
)
python -m launch.train --config=configs/train.py:micro --workdir=$here/run "${small[@]}" --config.data.split=teacher \
  --config.tokens=8K --config.eval.tokens=512 --config.loop.keep=1
for kind in topk sampled hidden; do
  python -m launch.cache --config=configs/signals.py:$kind "${small[@]}" --config.tokens=1K \
    --config.teacher.source=$here/run --shard_tokens=256 --out=$here/signals-$kind
done
python -m launch.study --config=configs/study.py:smoke --workdir=runs/golden \
  --config.study.models='a = 16x1,b = 32x1' --config.study.teachers='b @ 8K' --config.study.supervised='a b @ 4K 6K 8K' \
  --config.study.distilled='b@8K > a b @ 4K 6K 8K' --config.study.resamples=16 --config.seq_len=32 \
  --config.batch_size=4 --config.eval.tokens=1024 --config.optim.warmup_steps=5
cp runs/golden/{runs,curves}.csv $here
cp runs/smoke/predictions.csv $here  # of bash launch/quickstart.sh
python -m launch.fit --table=apple --law=distillation --holdout='L_S<=2.3' --resamples=16 --figures=no --out=$here/law.json
rm -f $here/run/lock $here/signals-*/lock $here/.store.lock
