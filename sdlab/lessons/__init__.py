"""Lessons as data: files in lessons/, what their predicates read, one learner's way, and the check by figures."""

from sdlab.lessons.lesson import Lesson as Lesson
from sdlab.lessons.library import listed as listed
from sdlab.lessons.library import load as load
from sdlab.lessons.library import names as names
from sdlab.lessons.walk import Walk as Walk
