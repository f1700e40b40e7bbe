import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from gsv_core.audio.spectrogram import linear_spectrogram
from gsv_core.checkpoints.base import load_published
from gsv_core.checkpoints.releases import Release
from gsv_core.checkpoints.weights import save_weights
from gsv_core.networks.layers import fold_weight_norm
from gsv_core.synthesis import synthesiser as synthesiser_module
from gsv_core.synthesis.sampling import Sampling
from gsv_core.synthesis.synthesiser import PAUSE_S, Prompt, Synthesiser
from gsv_core.text.front_end import UnspeakableText, phonemise, with_lead_in
from gsv_core.training.schedules import PhasePlan
from gsv_core.training.semantic_trainer import SemanticTrainer
from gsv_core.training.wave_trainer import WaveTrainer
from tests.gsv_core.made_bases import small_mel_release, write_mel_release
from tests.gsv_core.made_items import made_wave

SHORT = Sampling(longest_tokens=20)
PLAN = PhasePlan(steps=1, batch_size=2, learning_rate=1e-3, longest_frames=48)


@pytest.fixture(scope="module")
def prompt(base):
    return Prompt.of(base, made_wave(0, 1.5).numpy(), "hello there", "en", clip_id="abc")


@pytest.fixture(scope="module")
def trainers(base, items):
    trained = []
    for kind in (SemanticTrainer, WaveTrainer):
        trainer = kind(base, PLAN, voice="anna")
        trainer.step(trainer.collate(items[:2]))
        trained.append(trainer)
    return trained


def test_speech_is_finite_bounded_and_as_long_as_its_tokens(base, prompt):
    speech = Synthesiser(base, sampling=SHORT).speak("Good morning.", "en", prompt)
    assert speech.rate_hz == 32_000
    assert speech.wave.dtype == np.float32
    assert np.isfinite(speech.wave).all()
    assert 0 < np.abs(speech.wave).max() <= 1
    assert len(speech.wave) == len(speech.tokens[0]) * 2 * 640
    assert speech.seconds == len(speech.wave) / 32_000


def test_the_same_seed_gives_the_same_wave_whatever_was_drawn_before(base, prompt):
    synthesiser = Synthesiser(base, sampling=SHORT)
    first = synthesiser.speak("Good morning.", "en", prompt, seed=4)
    torch.rand(3)
    assert np.array_equal(first.wave, synthesiser.speak("Good morning.", "en", prompt, seed=4).wave)
    assert first.tokens != synthesiser.speak("Good morning.", "en", prompt, seed=5).tokens


def test_upstreams_bound_loses_the_first_token_of_a_sentence_that_does_not_end(base, prompt):
    # Before the eleventh token no sentence can end by itself.
    bounds = {most: Sampling(longest_tokens=most) for most in (8, 9)}
    (ours,) = Synthesiser(base, sampling=bounds[8]).speak("Good morning.", "en", prompt).tokens
    (longer,) = Synthesiser(base, sampling=bounds[9]).speak("Good morning.", "en", prompt).tokens
    (theirs,) = Synthesiser(base, sampling=bounds[8], upstream_bound=True).speak("Good morning.", "en", prompt).tokens
    assert (len(longer), longer[:8]) == (9, ours)
    assert theirs == longer[1:]


def test_speed_changes_the_length_and_not_the_tokens(base, prompt):
    synthesiser = Synthesiser(base, sampling=SHORT)
    normal, fast = (synthesiser.speak("Good morning.", "en", prompt, speed=speed) for speed in (1.0, 2.0))
    assert normal.tokens == fast.tokens
    assert len(fast.wave) == pytest.approx(len(normal.wave) / 2, abs=640)
    with pytest.raises(ValueError, match=r"speed should be between 0\.25 and 4, got 0$"):
        synthesiser.speak("Good morning.", "en", prompt, speed=0)


def test_sentences_are_joined_by_a_pause(base, prompt):
    speech = Synthesiser(base, sampling=SHORT).speak("Good morning. How are you today?", "en", prompt)
    assert len(speech.tokens) == 2
    first, second = (len(tokens) * 2 * 640 for tokens in speech.tokens)
    pause = round(PAUSE_S * 32_000)
    assert len(speech.wave) == first + pause + second
    assert not speech.wave[first : first + pause].any()


def test_sentences_decoded_together_are_those_decoded_alone(base, prompt, monkeypatch):
    text = "Good morning. How are you today? It is raining. Goodbye."
    together = Synthesiser(base, sampling=SHORT).speak(text, "en", prompt)
    monkeypatch.setattr(synthesiser_module, "PIECES_AT_FIRST", 1)
    monkeypatch.setattr(synthesiser_module, "PIECES_AT_ONCE", 1)
    alone = Synthesiser(base, sampling=SHORT).speak(text, "en", prompt)
    assert len(together.tokens) == 4
    assert together.tokens == alone.tokens


def test_pieces_that_stream_are_the_speech_that_is_spoken(base, prompt):
    synthesiser = Synthesiser(base, sampling=SHORT)
    options = {"seed": 3, "pause_s": 0.1, "rate_hz": 24_000, "speed": 1.2}
    text = "Good morning. How are you today? It is raining. Goodbye. And once more, hello to you all."
    pieces = list(synthesiser.stream(text, "en", prompt, **options))
    whole = synthesiser.speak(text, "en", prompt, **options)
    assert len(pieces) == 6
    assert np.array_equal(np.concatenate([piece.wave for piece in pieces]), whole.wave)
    assert tuple(tokens for piece in pieces for tokens in piece.tokens) == whole.tokens
    assert {piece.rate_hz for piece in pieces} == {whole.rate_hz} == {24_000}
    assert not any(piece.wave[:2400].any() for piece in pieces[1:])


def test_what_cannot_be_spoken_is_said_before_the_first_piece(base, prompt):
    with pytest.raises(UnspeakableText):
        Synthesiser(base).stream("…", "en", prompt)


def test_a_piece_is_spoken_before_the_next_are_decoded(base, prompt, monkeypatch):
    decoded = []
    sample = synthesiser_module.sample_sentences

    def counted(network, sentences, sampling):
        decoded.append(len(sentences))
        return sample(network, sentences, sampling)

    monkeypatch.setattr(synthesiser_module, "sample_sentences", counted)
    text = " ".join("Good morning everyone." for _ in range(22))
    pieces = Synthesiser(base, sampling=Sampling(longest_tokens=4)).stream(text, "en", prompt)
    next(pieces)
    assert decoded == [4]
    assert len(list(pieces)) == 21
    assert decoded == [4, 16, 2]


def test_the_pause_is_as_long_as_asked_and_within_bounds(base, prompt):
    synthesiser = Synthesiser(base, sampling=SHORT)
    none, half = (
        synthesiser.speak("Good morning. How are you today?", "en", prompt, pause_s=pause_s) for pause_s in (0.0, 0.5)
    )
    assert len(half.wave) - len(none.wave) == 16_000
    for wrong in (-0.1, 11.0, float("nan")):
        with pytest.raises(ValueError, match="the pause in seconds should be between 0 and 10"):
            synthesiser.speak("Good morning.", "en", prompt, pause_s=wrong)


@pytest.mark.parametrize("rate_hz", [8_000, 24_000, 44_100])
def test_speech_comes_at_the_rate_that_is_asked_for(base, prompt, rate_hz):
    synthesiser = Synthesiser(base, sampling=SHORT)
    own = synthesiser.speak("Good morning.", "en", prompt)
    other = synthesiser.speak("Good morning.", "en", prompt, rate_hz=rate_hz)
    assert other.rate_hz == rate_hz
    assert other.seconds == pytest.approx(own.seconds, abs=1e-3)
    assert other.tokens == own.tokens
    # What both rates can hold is there in both.
    shared = min(rate_hz, 32_000) // 2 * 0.8
    powers = [
        np.abs(np.fft.rfft(speech.wave))[: int(shared * speech.seconds)].astype(np.float64) / len(speech.wave)
        for speech in (own, other)
    ]
    assert (powers[1] ** 2).sum() == pytest.approx((powers[0] ** 2).sum(), rel=0.02)
    with pytest.raises(ValueError, match="the rate in Hz should be between 8000 and 192000, got 4000"):
        synthesiser.speak("Good morning.", "en", prompt, rate_hz=4_000)


def test_a_wave_that_would_clip_is_made_softer_and_a_soft_one_is_left(base):
    synthesiser = Synthesiser(base)
    loud = np.sin(np.arange(3200, dtype=np.float32) / 5) * 1.8
    finished = synthesiser.finished(loud, 32_000)
    assert np.abs(finished).max() == pytest.approx(1 - 2**-15, abs=1e-6)
    np.testing.assert_allclose(finished, loud / np.abs(loud).max(), atol=1e-4)
    assert np.array_equal(synthesiser.finished(loud / 2, 32_000), loud / 2)


def test_sampling_of_a_call_counts_before_the_synthesisers_own(base, prompt):
    synthesiser = Synthesiser(base, sampling=SHORT)
    brief = synthesiser.speak("Good morning.", "en", prompt, sampling=Sampling(longest_tokens=6))
    assert len(brief.tokens[0]) == 6
    certain = [
        synthesiser.speak(
            "Good morning.", "en", prompt, seed=seed, sampling=Sampling(longest_tokens=20, top_k=1)
        ).tokens
        for seed in (0, 1)
    ]
    assert certain[0] == certain[1]


def test_a_very_short_text_is_spoken_with_a_pause_in_front(base, prompt, monkeypatch):
    read = []
    sample = synthesiser_module.sample_sentences

    def kept(network, sentences, sampling):
        read.extend(sentence.phoneme_ids[len(prompt.phoneme_ids) :].tolist() for sentence in sentences)
        return sample(network, sentences, sampling)

    monkeypatch.setattr(synthesiser_module, "sample_sentences", kept)
    synthesiser = Synthesiser(base, sampling=SHORT)
    speech = synthesiser.speak("好。", "zh", prompt)
    assert read == [list(with_lead_in(phonemise("好。", "zh")).ids)]
    assert len(read[0]) == len(phonemise("好。", "zh").ids) + 1
    assert np.abs(speech.wave).max() > 0


def test_a_timbre_of_its_own_replaces_the_prompts_and_leaves_the_tokens(base, prompt):
    synthesiser = Synthesiser(base, sampling=SHORT)
    other = replace(prompt, wave=made_wave(7, 1.5))
    own, theirs = synthesiser.timbre_of(prompt), synthesiser.timbre_of(other)
    plain = synthesiser.speak("Good morning.", "en", prompt)
    assert np.array_equal(synthesiser.speak("Good morning.", "en", prompt, timbre=own).wave, plain.wave)
    between = synthesiser.speak("Good morning.", "en", prompt, timbre=synthesiser.mean_timbre([prompt, other]))
    assert between.tokens == plain.tokens
    assert not np.array_equal(between.wave, plain.wave)
    torch.testing.assert_close(synthesiser.mean_timbre([prompt, other]), (own + theirs) / 2)
    with pytest.raises(ValueError, match=r"a timbre of nano is \d+ wide, got \(3,\)"):
        synthesiser.speak("Good morning.", "en", prompt, timbre=torch.zeros(3))


def test_several_references_speak_as_the_release_averages_them(base, prompt):
    # Its own way is to hand all spectrograms and speaker vectors to the decoder.
    synthesiser = Synthesiser(base)
    other = replace(prompt, wave=made_wave(7, 1.5), speaker_vector=prompt.speaker_vector.flip(0))
    tokens, ids, noise = torch.arange(12)[None], torch.tensor([[3, 9, 27]]), torch.zeros(1, 1, 24)
    network = synthesiser.acoustic
    theirs = network.decode(
        tokens,
        ids,
        [linear_spectrogram(one.wave[None], base.spec.spectrogram) for one in (prompt, other)],
        [one.speaker_vector.float()[None] for one in (prompt, other)],
        noise=noise.expand(1, network.config.latent, 24),
    )
    mean = synthesiser.mean_timbre([prompt, other])[None, :, None]
    ours = network.decode(tokens, ids, timbre=mean, noise=noise.expand(1, network.config.latent, 24))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("text", ["", "...", "🙂"])
def test_text_without_a_word_is_refused(base, prompt, text):
    with pytest.raises(UnspeakableText):
        Synthesiser(base).speak(text, "en", prompt)


def test_weights_from_files_and_from_memory_speak_alike_and_unlike_the_base(base, prompt, trainers, tmp_path):
    paths = []
    for trainer in trainers:
        paths.append(tmp_path / f"{trainer.phase}-s000001.safetensors")
        save_weights(paths[-1], trainer.weights(), trainer.metadata())
    from_files = Synthesiser(base, *paths, sampling=SHORT)
    from_memory = Synthesiser.from_tensors(base, *(trainer.weights() for trainer in trainers), sampling=SHORT)
    waves = [
        synthesiser.speak("Good morning.", "en", prompt).wave
        for synthesiser in (from_files, from_memory, Synthesiser(base, sampling=SHORT))
    ]
    assert np.array_equal(waves[0], waves[1])
    assert not np.array_equal(waves[0], waves[2])
    folded = copy.deepcopy(trainers[1].network)
    fold_weight_norm(folded)
    trained = folded.state_dict()
    ours = from_files.acoustic.state_dict()
    assert all(torch.equal(ours[name], trained[name]) for name in ours if not name.startswith("enc_q."))


def test_weights_of_another_base_or_shape_are_refused(base, trainers, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(path, trainers[0].weights(), trainers[0].metadata() | {"base_digest": "0" * 64, "release": "v2"})
    with pytest.raises(ValueError, match="was trained from base v2 000000000000, not from nano"):
        Synthesiser(base, path)
    with pytest.raises(ValueError, match="nonsense is"):
        Synthesiser.from_tensors(base, {"nonsense": torch.ones(1)}, {})
    with pytest.raises(ValueError, match=r"dec\.conv_post\.weight is \(3,\), expected \(1, "):
        Synthesiser.from_tensors(base, {}, {"dec.conv_post.weight": torch.ones(3)})


def test_diverged_weights_are_named_and_never_become_a_wave(base, prompt):
    name = "dec.conv_post.weight"
    broken = {name: torch.full_like(base.semantic_to_wave.state_dict()[name], torch.nan)}
    with pytest.raises(ValueError, match="no finite wave"):
        Synthesiser.from_tensors(base, {}, broken, sampling=SHORT).speak("Good morning.", "en", prompt)


def test_the_timbre_follows_the_prompt_and_a_loud_one_is_scaled_down(base, prompt):
    synthesiser = Synthesiser(base)
    other = replace(prompt, wave=made_wave(7, 1.5))
    assert not torch.equal(synthesiser.timbre_of(prompt), synthesiser.timbre_of(other))
    full_scale = replace(prompt, wave=prompt.wave / prompt.wave.abs().max())
    loud = replace(prompt, wave=full_scale.wave * 1.5)
    torch.testing.assert_close(synthesiser.timbre_of(loud), synthesiser.timbre_of(full_scale))


def test_a_prompt_without_transcript_gives_its_timbre_only(base, prompt):
    synthesiser = Synthesiser(base, sampling=SHORT)
    silent = replace(prompt, phoneme_ids=prompt.phoneme_ids[:0], text="")
    others_tokens = replace(silent, tokens=prompt.tokens.flip(0))
    speech = synthesiser.speak("Good morning.", "en", silent)
    assert speech.tokens == synthesiser.speak("Good morning.", "en", others_tokens).tokens
    assert speech.tokens != synthesiser.speak("Good morning.", "en", prompt).tokens


def test_a_prompt_is_stored_whole(base, prompt, tmp_path):
    prompt.save(tmp_path)
    again = Prompt.load(tmp_path)
    assert (again.text, again.language, again.clip_id) == ("hello there", "en", "abc")
    for name in ("phoneme_ids", "tokens", "wave", "speaker_vector"):
        assert torch.equal(getattr(again, name), getattr(prompt, name))
    assert again.text_vectors is None
    synthesiser = Synthesiser(base, sampling=SHORT)
    assert np.array_equal(
        synthesiser.speak("Good morning.", "en", prompt).wave, synthesiser.speak("Good morning.", "en", again).wave
    )
    (tmp_path / "prompt.json").write_text("{}")
    with pytest.raises(ValueError, match="no readable Prompt"):
        Prompt.load(tmp_path)


@pytest.fixture(scope="module", params=[Release.V3, Release.V4])
def mel_base(request, tmp_path_factory):
    folder, spec = tmp_path_factory.mktemp(request.param), small_mel_release(request.param)
    write_mel_release(folder, spec)
    return load_published(spec, folder)


@pytest.fixture(scope="module")
def mel_prompt(mel_base):
    return Prompt.of(mel_base, made_wave(0, 1.5).numpy(), "hello there", "en")


def test_a_release_with_a_vocoder_speaks_at_its_rate_and_as_long_as_its_tokens(mel_base, mel_prompt):
    synthesiser = Synthesiser(mel_base, sampling=SHORT)
    speech = synthesiser.speak("Good morning.", "en", mel_prompt, steps=2)
    assert speech.rate_hz == {Release.V3: 24_000, Release.V4: 48_000}[mel_base.release]
    assert np.isfinite(speech.wave).all()
    assert 0 < np.abs(speech.wave).max() <= 1
    network, vocoder = mel_base.mel_networks()
    frames = int(len(speech.tokens[0]) * network.config.frames_per_token)
    assert len(speech.wave) == frames * vocoder.config.hop
    assert np.array_equal(speech.wave, synthesiser.speak("Good morning.", "en", mel_prompt, steps=2).wave)
    other = synthesiser.speak("Good morning.", "en", mel_prompt, steps=2, seed=1)
    assert other.tokens != speech.tokens


def test_steps_and_guidance_decide_the_sound_and_not_the_length(mel_base, mel_prompt):
    synthesiser = Synthesiser(mel_base, sampling=SHORT)
    waves = [
        synthesiser.speak("Good morning.", "en", mel_prompt, steps=steps, guidance=guidance).wave
        for steps, guidance in ((1, None), (2, None), (2, 0.7), (None, 0.0))
    ]
    assert len({len(wave) for wave in waves}) == 1
    assert len({wave.tobytes() for wave in waves}) == 4
    published = synthesiser.speak("Good morning.", "en", mel_prompt, steps=mel_base.spec.sampling_steps)
    assert np.array_equal(published.wave, waves[3])
    with pytest.raises(ValueError, match="got 0 steps"):
        synthesiser.speak("Good morning.", "en", mel_prompt, steps=0)


def test_speech_longer_than_a_chunk_is_said_whole_and_speed_changes_its_length(mel_base, mel_prompt):
    network, vocoder = mel_base.mel_networks()
    long = Sampling(longest_tokens=60)
    text = "Good morning everyone, what a lovely day it is, and how are you all doing today"
    synthesiser = Synthesiser(mel_base, sampling=long)
    normal, fast = (synthesiser.speak(text, "en", mel_prompt, speed=speed, steps=1, cut="cut0") for speed in (1.0, 2.0))
    assert normal.tokens == fast.tokens
    frames = len(normal.wave) / vocoder.config.hop
    assert frames > 2 * network.config.chunk_frames - network.config.reference_frames
    assert len(fast.wave) == pytest.approx(len(normal.wave) / 2, abs=4 * vocoder.config.hop)
    assert np.abs(normal.wave[-1000:]).max() > 0


def test_the_manner_follows_the_prompt_and_one_without_transcript_gives_its_timbre(mel_base, mel_prompt):
    synthesiser = Synthesiser(mel_base, sampling=SHORT)
    silent = replace(mel_prompt, phoneme_ids=mel_prompt.phoneme_ids[:0], text="")
    assert synthesiser.manner_of(mel_prompt).said.mel.shape[2] == 40
    assert synthesiser.manner_of(silent).said.mel.shape[2] == 0
    speech = synthesiser.speak("Good morning.", "en", silent, steps=1)
    same_timbre = replace(silent, tokens=silent.tokens.flip(0))
    assert np.array_equal(speech.wave, synthesiser.speak("Good morning.", "en", same_timbre, steps=1).wave)
    other_timbre = replace(silent, wave=made_wave(7, 1.5))
    assert not np.array_equal(speech.wave, synthesiser.speak("Good morning.", "en", other_timbre, steps=1).wave)


def test_a_voice_changes_its_base_by_whole_tensors_or_by_low_rank_factors(mel_base, mel_prompt):
    network, _ = mel_base.mel_networks()
    owner = "cfm.estimator.transformer_blocks.1.attn.to_q"
    weight = network.state_dict()[f"{owner}.weight"]
    down, up = (torch.randn(2, weight.shape[1]) * 0.3, torch.randn(weight.shape[0], 2) * 0.3)
    bridge = network.state_dict()["bridge.0.weight"] * 1.5
    low_rank = {f"{owner}.lora_A": down, f"{owner}.lora_B": up, "bridge.0.weight": bridge}
    whole = {f"{owner}.weight": weight + up @ down, "bridge.0.weight": bridge}
    waves = []
    for weights in (low_rank, whole, {"bridge.0.weight": bridge}, {}):
        synthesiser = Synthesiser.from_tensors(mel_base, {}, weights, sampling=SHORT)
        waves.append(synthesiser.speak("Good morning.", "en", mel_prompt, steps=2).wave)
    assert np.array_equal(waves[0], waves[1])
    assert len({wave.tobytes() for wave in waves[1:]}) == 3
    assert torch.equal(network.state_dict()[f"{owner}.weight"], weight)
    with pytest.raises(ValueError, match="not a pair that belongs to it"):
        Synthesiser.from_tensors(mel_base, {}, {f"{owner}.lora_A": down})
    with pytest.raises(ValueError, match="factors of nonsense are not a pair"):
        Synthesiser.from_tensors(mel_base, {}, {"nonsense.lora_A": down, "nonsense.lora_B": up})


def test_only_what_a_voice_changes_takes_memory_of_its_own(base, trainers):
    weights = trainers[0].weights()
    state = copy.deepcopy(base.text_to_semantic.state_dict())
    ours = Synthesiser.from_tensors(base, weights, {}).text_to_semantic
    for (name, tensor), (_, own) in zip(base.text_to_semantic.named_parameters(), ours.named_parameters(), strict=True):
        assert (tensor.data_ptr() == own.data_ptr()) == (name not in weights)
    assert all(torch.equal(tensor, state[name]) for name, tensor in base.text_to_semantic.state_dict().items())


def test_a_release_without_a_flow_takes_no_steps(base, prompt):
    with pytest.raises(ValueError, match="steps and guidance belong to v3 and v4; nano"):
        Synthesiser(base).speak("Good morning.", "en", prompt, steps=4)


def test_silence_after_a_prompt_lengthens_its_tokens_and_nothing_else(base, prompt):
    longer = Prompt.of(base, made_wave(0, 1.5).numpy(), "hello there", "en", clip_id="abc", silence_s=0.6)
    assert len(longer.tokens) - len(prompt.tokens) == 15
    assert torch.equal(longer.wave, prompt.wave)
    assert torch.equal(longer.phoneme_ids, prompt.phoneme_ids)
    assert torch.equal(longer.speaker_vector, prompt.speaker_vector)
