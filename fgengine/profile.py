"""Profiles: the cost model of a model on a device, and its file.

A measured profile has the step times to which its cost model was fitted. An analytic profile is computed from
the published figures of a device (``fgengine.analytic``), and it is marked wherever it is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from fgengine.cache import write_durably
from fgengine.cost import CostModel, StepShape
from fgengine.devices import DeviceSpec
from fgengine.efficiency import Efficiency
from fgengine.machine_load import MachineLoad
from fgengine.model.shape import ModelShape
from fgengine.physics import Ceilings, floor_of, impossible
from fgengine.profile_grid import Grid, TimedStep

VERSION = 1
MAX_POINTS = 10_000
MAX_FILE_BYTES = 16 * 1024**2
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FIT_TOLERANCE = 0.5
"""The fitted cost model may predict down to this share of a step's floor, because the fit is only linear."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """The load of the machine while a profile was measured."""

    other_cores: float
    """Cores used by other programs."""
    stolen_cores: float
    """Cores used by other virtual machines."""
    mhz: float | None
    """Clock frequency of the processor in MHz; None if the system does not report it."""
    busy: bool
    """Whether the load was too high for a reliable profile."""

    @classmethod
    def of(cls, load: MachineLoad) -> Conditions:
        """Return the conditions of a measured load."""
        return cls(load.other_cores, load.stolen_cores, load.mhz, load.is_busy)


@dataclass(frozen=True, slots=True)
class Analytic:
    """What an analytic profile was computed from."""

    spec: DeviceSpec
    efficiency: Efficiency

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON, with the reasons for the efficiencies."""
        return asdict(self) | {"reasons": dict(self.efficiency.reasons())}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Analytic:
        """Create it from the dict of ``to_dict``. Raises ValueError or TypeError for unusable values."""
        return cls(DeviceSpec(**data["spec"]), Efficiency(**data["efficiency"]))


@dataclass(frozen=True, slots=True)
class Profile:
    """The cost model of a model on a device, and the measured step times to which it was fitted."""

    model: str
    shape: str
    """``shape_key`` of the model. The name is not enough, because its meaning can change."""
    device: str
    dtype: str
    cost: CostModel
    ceilings: Ceilings
    points: tuple[TimedStep, ...]
    """Measured steps; an analytic profile has none."""
    versions: dict[str, str]
    measured: str
    """Time of the measurement, ISO 8601; empty for an analytic profile."""
    conditions: Conditions | None = None
    """None in files of older versions, which did not store conditions, and in analytic profiles."""
    analytic: Analytic | None = None
    """What an analytic profile was computed from; None: the profile was measured."""

    @property
    def on_cpu(self) -> bool:
        """Whether the device is a CPU. Only the name of a CPU contains its number of threads."""
        return self.analytic is None and " threads of " in self.device

    def describe(self) -> str:
        """Return the device, the number format, and when it was measured or that it is analytic."""
        if self.analytic is None:
            return f"{self.device}, {self.dtype}, {self.measured}"
        efficiency = self.analytic.efficiency
        overhead = (
            "" if efficiency.has_default_overhead else f", {efficiency.step_seconds * 1e3:g} ms per step"
        )
        return f"{self.device}, {self.dtype}, analytic{overhead}"

    def covers(self, grid: Grid, shape: ModelShape) -> bool:
        """Whether all points of the grid that the model supports were measured.

        An engine with other settings, such as longer requests, needs all of them.
        """
        possible = [point for point in grid.points() if point.longest <= shape.max_position]
        return len(self.points) == len(possible)

    def held_out_errors(self) -> list[float]:
        """Return |fitted / measured - 1| of each held-out point."""
        return [
            abs(self.cost.step_seconds(point.shape) / point.seconds - 1.0)
            for point in self.points
            if point.held_out
        ]

    @property
    def median_error(self) -> float:
        """Median of ``held_out_errors``; NaN if no points were held out."""
        errors = self.held_out_errors()
        return median(errors) if errors else math.nan

    def closest_to_floor(self, shape: ModelShape) -> tuple[TimedStep, float]:
        """Return the point that is closest to its floor (see ``physics``), and its seconds / floor."""

        def times_floor(point: TimedStep) -> float:
            floor = floor_of(point.items, shape, ELEMENT_BYTES[self.dtype], self.ceilings)
            return point.seconds / floor.seconds

        closest = min(self.points, key=times_floor)
        return closest, times_floor(closest)

    def implausible(self, shape: ModelShape) -> list[str]:
        """Return a sentence for each measured or fitted time that is physically impossible."""
        element_bytes = ELEMENT_BYTES[self.dtype]
        measured = [(point.items, point.seconds) for point in self.points]
        fitted = [(items, self.cost.step_seconds(StepShape.of(items))) for items, _ in measured]
        return impossible(measured, shape, element_bytes, self.ceilings) + impossible(
            fitted, shape, element_bytes, self.ceilings, FIT_TOLERANCE
        )

    def require(self, *, shape: ModelShape, device: str, dtype: str) -> None:
        """Raise ValueError unless the profile is of this model, device and dtype, and is plausible."""
        if self.shape != shape_key(shape):
            raise ValueError(f"the profile is of another model ({self.model}); {REMEASURE}")
        for name, own, wanted in (("device", self.device, device), ("dtype", self.dtype, dtype)):
            if own != wanted:
                raise ValueError(f"the profile is of {name} {own}, not {wanted}; {REMEASURE}")
        if problems := self.implausible(shape):
            raise ValueError(f"the profile cannot be true: {problems[0]}; {REMEASURE}")

    def save(self, path: Path) -> None:
        """Write the file; a reader never sees an incomplete file. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, self.to_json())

    def to_json(self) -> bytes:
        """Return the content of the profile's file."""
        data = {"version": VERSION, **asdict(self), "median_error": self.median_error}
        del data["analytic"]
        if self.analytic is not None:
            data["analytic"] = self.analytic.to_dict()
        if math.isnan(self.median_error):
            data["median_error"] = None
        return (json.dumps(data, indent=1, allow_nan=False) + "\n").encode()

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Read a file. Raises ValueError, with its name, if it is no complete profile of our version."""
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
            data = json.loads(path.read_text(encoding="utf-8"))
            return cls._from_dict(data)
        except OSError as error:
            raise ValueError(f"cannot read the profile {path}: {error.strerror}") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path} is not a usable profile: {reason}; {REMEASURE}") from None

    @classmethod
    def _from_dict(cls, data: Any) -> Profile:
        if not isinstance(data, dict) or data.get("version") != VERSION:
            raise ValueError(f"it is not a profile of version {VERSION}")
        if data["dtype"] not in ELEMENT_BYTES:
            raise ValueError(f"dtype {data['dtype']} is unknown")
        analytic = data.get("analytic")
        if not (analytic or data["points"]) or len(data["points"]) > MAX_POINTS:
            raise ValueError(f"it must hold 1 to {MAX_POINTS} points")
        points = tuple(TimedStep(**point) for point in data["points"])
        if not all(0.0 < point.seconds < math.inf for point in points):
            raise ValueError("a point's seconds must be above 0 and finite")
        parts = {f.name: data[f.name] for f in fields(cls) if f.name not in ("conditions", "analytic")}
        conditions = data.get("conditions")
        parts |= {
            "analytic": None if analytic is None else Analytic.from_dict(analytic),
            "conditions": None if conditions is None else Conditions(**conditions),
            "cost": CostModel.from_dict(data["cost"]),
            "ceilings": Ceilings(**data["ceilings"]),
            "points": points,
        }
        return cls(**parts)


REMEASURE = "measure one with `fgbench profile`"


def shape_key(shape: ModelShape) -> str:
    """Return a key of the architecture and sizes. Models with the same key have the same costs."""
    return hashlib.sha256(json.dumps(asdict(shape), sort_keys=True).encode()).hexdigest()[:16]


def file_name(model: str, device: str, dtype: str) -> str:
    """Return ``<model>-<device>-<dtype>.json``; if the model is a path, its last part is used."""
    return "-".join(_slug(part) for part in (Path(model).name, device, dtype)) + ".json"


def profiles_in(folder: Path, model: str) -> list[Profile]:
    """Return the readable profiles of ``model`` in ``folder``: one for each device and dtype."""
    files = sorted(folder.glob(f"{_slug(Path(model).name)}-*.json"))
    return [profile for file in files if (profile := _loaded(file)) is not None and profile.model == model]


def _loaded(path: Path) -> Profile | None:
    """Load a profile. Returns None for a damaged file; an engine that uses it will report the reason."""
    try:
        return Profile.load(path)
    except ValueError:
        return None


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
