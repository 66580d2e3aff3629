#!/usr/bin/env bash
# How the files beside this one were made, by the last version whose modules lay loose (29b27e6), once. They are not made again.
set -euo pipefail
first=tests/golden/first here=tests/golden/before_rooms
python -m launch.train --config=configs/train.py:micro --workdir=$here/student \
  --config.data.source=tokens --config.data.tokens=$first/store --config.model.vocab_size=300 --config.model.d_model=16 \
  --config.model.n_layers=1 --config.model.n_heads=1 --config.seq_len=16 --config.batch_size=4 \
  --config.teacher.source=$first/run --config.tokens=8K --config.eval.tokens=512 --config.loop.keep=1
python -m launch.fit --table=micro --law=distillation --supervised=table --units=asis --cluster=trunk --delta=1e-2 \
  --resamples=16 --figures=no --out=$here/law.json
rm -f $here/student/lock
