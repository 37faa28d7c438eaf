"""Sound: WAV files, log-mel spectrograms, and folders of clips."""

from quorate.data.audio.folder import Clip, audio_folder
from quorate.data.audio.log_mel import LogMel, log_mel

__all__ = ["Clip", "LogMel", "audio_folder", "log_mel"]
