# SPDX-License-Identifier: GPL-3.0-or-later
"""Solve one placement problem to proven optimality: runs in the rivals' venv, which has ortools; JSON in, JSON out.

The problem (see optimum.py) is in whole numbers. x[g][n] is guest g on node n. A node's share of cpu or memory is linear in
x; its standard deviation over the nodes is bounded from above by a whole number s with n * sum((share - mean)^2) <= s^2.
"""

import json
import sys

from ortools.sat.python import cp_model


def solve(problem: dict) -> dict:
    """Minimise moves, and then bytes, below a ceiling of the imbalance; without a ceiling the imbalance and what the moves cost."""
    model = cp_model.CpModel()
    nodes, guests = range(problem["nodes"]), range(len(problem["at"]))
    x = [[model.new_bool_var("") for _ in nodes] for _ in guests]
    moved = []
    for g in guests:
        model.add_exactly_one(x[g])
        for n in nodes:
            if n not in problem["allowed"][g]:
                model.add(x[g][n] == 0)
            model.add_hint(x[g][n], n == problem["known"][g])
        moved.append(1 - x[g][problem["at"][g]])
    for one, other in problem["together"]:
        for n in nodes:
            model.add(x[one][n] == x[other][n])
    for one, other in problem["apart"]:
        for n in nodes:
            model.add_at_most_one(x[one][n], x[other][n])
    deviations = []
    for resource in problem["resources"]:
        loads, base, top = resource["loads"], resource["base"], resource["top"]
        shares = []
        for n in nodes:
            share = base[n] + sum(loads[g][n] * x[g][n] for g in guests)
            shares.append(share)
            # a node that receives somebody stays within what may be filled; one that does not may be fuller, as it is
            receives = model.new_bool_var("")
            arriving = [x[g][n] for g in guests if problem["at"][g] != n]
            model.add_max_equality(receives, arriving) if arriving else model.add(receives == 0)
            model.add(share <= top[n]).only_enforce_if(receives)
        highest = max(base) + sum(max(row) for row in loads)
        total = model.new_int_var(0, highest * len(shares), "")
        model.add(total == sum(shares))
        squares = []
        for share in shares:
            distance = model.new_int_var(-highest * len(shares), highest * len(shares), "")
            model.add(distance == len(shares) * share - total)
            square = model.new_int_var(0, (highest * len(shares)) ** 2, "")
            model.add_multiplication_equality(square, [distance, distance])
            squares.append(square)
        # n * share - total is n times the distance to the mean: sum of squares = n^3 * variance
        deviation = model.new_int_var(0, highest, "")
        deviation_squared = model.new_int_var(0, highest**2, "")
        model.add_multiplication_equality(deviation_squared, [deviation, deviation])
        model.add(sum(squares) <= len(shares) ** 3 * deviation_squared)
        deviations.append(resource["weight"] * deviation)
    moves = sum(moved)
    if problem["ceiling"] is None:
        model.minimize(sum(deviations) + sum(cost * moved[g] for g, cost in enumerate(problem["costs"])))
        return answer_of(model, x, problem)
    model.add(sum(deviations) <= problem["ceiling"])
    model.add(moves <= sum(known != at for known, at in zip(problem["known"], problem["at"], strict=True)))
    model.minimize(moves)
    fewest = answer_of(model, x, problem)
    if fewest["status"] == "OPTIMAL":  # of as many moves the lightest; this alone need not be proven
        model.add(moves == round(fewest["objective"]))
        model.minimize(sum(moved[g] * size for g, size in enumerate(problem["mib"])))
        lightest = answer_of(model, x, problem)
        fewest["to"] = lightest["to"] or fewest["to"]
    return fewest


def answer_of(model: cp_model.CpModel, x: list, problem: dict) -> dict:
    """The placement found, and whether it is proven to be the best."""
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = problem["limit_s"]
    solver.parameters.num_workers = problem["workers"]
    status = solver.solve(model)
    answer = {"status": solver.status_name(status), "wall_s": solver.wall_time, "to": [], "objective": None}
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        answer["to"] = [next(n for n, here in enumerate(row) if solver.value(here)) for row in x]
        answer["objective"] = solver.objective_value
    return answer


for line in sys.stdin:
    print(json.dumps(solve(json.loads(line))), flush=True)
