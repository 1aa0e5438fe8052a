"""Statistics over trials: plain functions of arrays, without hidden state or global random numbers.

`trajectory` (curves of trials), `sample` (one sample of final values), `interval` (estimates with intervals),
`pairs` (two samples), `best_of` (the best of k trials), `clusters` (samples that trained in part),
`components` (draws × seeds).
"""
