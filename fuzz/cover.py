"""Reads the control file of a libFuzzer merge (-set_cover_merge=1) and prints the few inputs that reach all the code
that any of them reaches: each time the one that adds most for its size.  cover.py CONTROL MOST"""

import heapq
import os
import sys

with open(sys.argv[1], encoding="utf-8", errors="surrogateescape") as f:
    lines = f.read().splitlines()
count = int(lines[0])
names, edges = lines[2 : 2 + count], {}
for line in lines[2 + count :]:
    words = line.split()
    if words and words[0] == "FT":
        # A feature is an edge and how often it was taken, in eight steps.
        edges[int(words[1])] = {int(word) // 8 for word in words[2:]}

weight = {i: 200 + os.path.getsize(names[i]) for i in edges}
covered = set()
queue = [(-len(e) / weight[i], i) for i, e in edges.items()]
heapq.heapify(queue)
most = int(sys.argv[2])
while queue and most > 0:
    value, i = heapq.heappop(queue)
    now = -len(edges[i] - covered) / weight[i]
    if now == 0:
        continue
    if now > value:  # it has less to add than it had
        heapq.heappush(queue, (now, i))
        continue
    print(names[i])
    most -= 1
    covered |= edges[i]
